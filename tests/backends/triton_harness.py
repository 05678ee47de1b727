"""Running a Triton kernel in Triton's interpreter, and compiling it to a cubin, without a GPU.

Needs TRITON_INTERPRET=1 before triton is imported (tests/conftest.py); cubins are compiled by a
process of its own, `compile_all`, which this file is too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.language as tl

from graphwright.backends.triton.chips import chips_of
from graphwright.backends.triton.cubin import Cubin, compile_cubins, cuobjdump
from graphwright.backends.triton.interpret import prepare
from graphwright.backends.triton.kernels.kernel import TritonKernel

__all__ = ["SPARE", "batch_header", "call", "checked_grid", "compile_all", "untouched"]

SPARE = 3  # rows that a bucket has beyond those of the step


def batch_header(tokens: int, sequences: int = 1, width: int = 1, rows: int = 0) -> torch.Tensor:
    """int32 [8]: T, B, M, R and zeros."""
    return torch.tensor([tokens, sequences, width, rows, 0, 0, 0, 0], dtype=torch.int32)


def call(kernel: TritonKernel, *tensors: torch.Tensor, spare: int = SPARE) -> None:
    """Runs `kernel` on its pointers, the batch header first, in a bucket of `spare` rows more."""
    prepare()
    _interpret_bfloat16()
    grid = checked_grid(kernel, tensors, spare)
    names = [name for name, _ in kernel.pointers]
    kernel.function[grid](**dict(zip(names, tensors, strict=True)), **kernel.constants)


def checked_grid(
    kernel: TritonKernel, tensors: Sequence[torch.Tensor], spare: int
) -> tuple[int, int, int]:
    """The grid of a bucket of `spare` rows more than the batch header, the first of the tensors,
    counts. They must be of the pointers' types."""
    assert len(tensors) == len(kernel.pointers), (len(tensors), kernel.pointers)
    for tensor, (name, dtype) in zip(tensors, kernel.pointers, strict=True):
        assert str(tensor.dtype) == f"torch.{dtype}", f"{name}: {tensor.dtype}, not {dtype}"
    batch = tensors[0].tolist()
    return kernel.grid({"T": batch[0] + spare, "R": batch[3] + spare})


def untouched(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A result to be: NaN (or a number nobody computes), so that what is not written shows."""
    return torch.full(tuple(shape), torch.nan if dtype.is_floating_point else 77, dtype=dtype)


@cache
def _interpret_bfloat16() -> None:
    """Triton's interpreter keeps bfloat16 as uint16: it rounds towards zero, and multiplies the
    bit patterns in a dot. Here it rounds to nearest even and multiplies the numbers.
    """
    from triton.runtime import interpreter

    builder, handle = interpreter.interpreter_builder, interpreter.TensorHandle
    cast, dot = builder.cast_impl, builder.create_dot

    def widen(data: Any) -> Any:
        return (data.astype(np.uint32) << 16).view(np.float32)

    def cast_impl(source: Any, dtype: Any) -> Any:
        if source.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
            bits = np.ascontiguousarray(source.data).view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            nan = np.isnan(source.data)
            return handle(np.where(nan, 0x7FC0, rounded).astype(np.uint16), tl.bfloat16)
        return cast(source, dtype)

    def create_dot(a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = handle(widen(a.data), tl.float32), handle(widen(b.data), tl.float32)
        return dot(a, b, *rest)

    builder.cast_impl, builder.create_dot = cast_impl, create_dot


def compile_all(
    factory: str, arguments: Iterable[Any], *, threads: int = 2, cache: Path | None = None
) -> list[dict[str, Any]]:
    """What ptxas made of each kernel `factory` (module:function) gives for each of `arguments`.

    cache: Triton's, instead of that which stays for the next run. The arguments travel as JSON.
    Each result has registers, stack (bytes of spills a thread), shared (bytes), name and sha256; of
    products of few rows by w4 also how often their loops exchange data between threads.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, __file__, factory, str(threads)],
        input=json.dumps(list(arguments)), env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


BY_NIBBLES = ("one_row", "few_rows")


def begins_early(kernel: TritonKernel) -> bool:
    """Where chips can: attention does so of a token alone."""
    return "EARLY" in kernel.constants and bool(kernel.constants.get("ALONE", True))


def _facts(kernel: TritonKernel, made: Cubin) -> dict[str, Any]:
    return {
        "name": kernel.name, "registers": made.registers, "stack": made.stack,
        "shared": made.shared, "warps": made.warps, "early": made.early,
        "begins_early": begins_early(kernel),
        "exchanges": _exchanges(made.code) if kernel.name.startswith(BY_NIBBLES) else None,
        "sha256": hashlib.sha256(made.code).hexdigest(),
    }  # fmt: skip


def _exchanges(code: bytes) -> int:
    """Shuffles, stores to shared memory and barriers in loops, by cuobjdump's listing. Two barriers
    are for copies from memory: in front of what is read, and of what is copied over it.
    """
    listing = cuobjdump(code, "-sass")
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+ )?([A-Z]\w*)([^;]*);", listing)
    operations = [(int(at, 16), name, rest) for at, name, rest in found]
    jumps = [
        (at, int(target[1], 16))
        for at, name, rest in operations
        if name == "BRA" and (target := re.search(r"0x([0-9a-f]+)", rest))
    ]
    loops = [(to, at) for at, to in jumps if to < at]
    assert loops, "the kernel has a loop"
    inside = [name for at, name, _ in operations if any(a <= at <= b for a, b in loops)]
    exchanges = sum(inside.count(name) for name in ("SHFL", "STS", "STSM"))
    return exchanges + max(0, inside.count("BAR") - 2)


def main() -> None:
    module, function = sys.argv[1].split(":")
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.path.insert(0, str(Path(__file__).parent))
    sys.path.insert(0, str(Path(__file__).parent / "triton_kernels"))
    factory = getattr(__import__(module), function)
    kernels = [factory(argument) for argument in json.loads(sys.stdin.read())]
    # with every pointer aligned, as those of a step are but for odd strides
    sources = [
        (kernel, chip, frozenset(name for name, _ in kernel.pointers))
        for kernel, capability in kernels
        for chip in chips_of(f"cuda:sm_{capability}")
    ]
    made = compile_cubins(sources, int(sys.argv[2]))
    facts = [_facts(kernel, each) for (kernel, _), each in zip(kernels, made, strict=True)]
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
