"""What a kernel is: a Triton function with all its static parameters fixed.

The numbers of rows are read on the device, from `batch` int32 [8] (backends/rows.py): T tokens, B
sequences, M block-table entries a sequence, R sampled rows. The grid depends on a bucket alone, the
most tokens and rows that a launch may meet, so that a captured CUDA graph can be replayed for any
smaller step. A kernel must write nothing beyond the rows that `batch` counts.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from graphwright.backends.rows import RowCount

__all__ = [
    "DTYPES",
    "PITCH",
    "ROWS",
    "Grid",
    "RowCount",
    "Size",
    "TritonKernel",
    "define",
    "sources_of",
    "with_dtype",
]

Size: TypeAlias = Mapping[RowCount, int]  # a bucket: the most tokens T and sampled rows R
Grid: TypeAlias = tuple[int, int, int]

ROWS = {"T": 0, "B": 1, "M": 2, "R": 3}  # where `batch` counts them
PITCH = 4  # and the numbers from a pool's block table to the next one's

# Names of element types are torch's; this is what Triton's signatures call them.
DTYPES = MappingProxyType(
    {
        "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int64": "i64", "int32": "i32",
        "int8": "i8", "uint8": "u8",
    }
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TritonKernel:
    """name: derived from all else, unique in a program, a file name and a C symbol.

    pointers: (parameter, element type) in the order of the function's signature, the parameters
    left out being constants. constants: every other parameter; None for a pointer that is absent.
    grid: programs on the three axes, from a bucket. fused: may a product and a sum be rounded once?
    most_registers: of a thread, 0: as many as the compiler likes.
    """

    name: str
    function: Any  # of triton.jit
    pointers: tuple[tuple[str, str], ...]
    constants: Mapping[str, Any]
    grid: Callable[[Size], Grid]
    num_warps: int
    num_stages: int
    fused: bool = True
    most_registers: int = 0


def define(
    stem: str, function: Any, pointers: Mapping[str, str | None], constants: Mapping[str, Any], *,
    grid: Callable[[Size], Grid], num_warps: int = 4, num_stages: int = 1, fused: bool = True,
    most_registers: int = 0,
) -> TritonKernel:  # fmt: skip
    """The kernel `stem_…` of a jit function. A pointer whose element type is None is absent.

    A function may have a constant EARLY (early.py) that nobody gives: it is False until the kernel
    is compiled for a chip.
    """
    absent = {name: None for name, dtype in pointers.items() if dtype is None}
    given = {**absent, **constants}
    if "EARLY" in function.arg_names:
        given["EARLY"] = False
    present = tuple((name, dtype) for name, dtype in pointers.items() if dtype is not None)
    named = {name for name, _ in present}
    assert not named & set(given), f"{stem}: both pointer and constant: {named & set(given)}"
    expected = [name for name in function.arg_names if name in named]
    assert expected == [name for name, _ in present], (
        f"{stem}: pointers are {present}, but the function's order is {expected}"
    )
    missing = set(function.arg_names) ^ (named | set(given))
    assert not missing, f"{stem}: parameters that only one side has: {sorted(missing)}"
    assert all(dtype in DTYPES for _, dtype in present), f"{stem}: {present}"
    constexprs = sorted((key, repr(value)) for key, value in given.items())
    parts = (present, constexprs, num_warps, num_stages, sources_of(function))
    limits = () if fused else ("not fused",)
    if most_registers:
        limits = (*limits, most_registers)
    text = repr((*parts, *limits))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return TritonKernel(
        f"{stem}_{digest}", function, present, MappingProxyType(given), grid, num_warps, num_stages,
        fused, most_registers,
    )  # fmt: skip


def with_dtype(kernel: TritonKernel, pointer: str, dtype: str) -> TritonKernel:
    """`kernel` with another element type behind `pointer`: of a result that it converts to."""
    pointers = tuple((name, dtype if name == pointer else own) for name, own in kernel.pointers)
    if pointers == kernel.pointers:
        return kernel
    return replace(kernel, name=f"{kernel.name}_{pointer}_{DTYPES[dtype]}", pointers=pointers)


def sources_of(function: Any) -> str:
    """The text of a jit function's Python definition, from its decorator to its end."""
    return inspect.getsource(function.fn)
