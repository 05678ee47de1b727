"""Launches in Triton's interpreter: numbers on a machine without a GPU.

Triton decides when a kernel's file is imported whether it will be interpreted: TRITON_INTERPRET=1
must be set before. It exchanges Triton's functions for its own at every launch and at every call of
one kernel function by another, which takes most of the time; `prepare` makes that once a process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from graphwright.backends.triton.kernels.kernel import Size, TritonKernel
from graphwright.backends.triton.launches import Launch
from graphwright.ir.errors import BackendError

__all__ = ["interpret", "prepare", "run_launches"]


@cache
def prepare() -> None:
    """From now on Triton's functions stay exchanged for the interpreter's."""
    from triton.runtime import interpreter

    exchange = interpreter._patch_lang
    done: dict[int, Any] = {}  # the names of a module; kept, so that no other gets their number

    class Kept:
        def restore(self) -> None:
            """Nothing: others will interpret, too."""

    def once(function: Any) -> Kept:
        names = function.__globals__
        if id(names) not in done:
            exchange(function)
            done[id(names)] = names
        return Kept()

    interpreter._patch_lang = once


def interpret(kernel: TritonKernel, size: Size, *pointers: torch.Tensor) -> None:
    """Runs a kernel for a bucket on tensors, one a pointer, whose first elements are pointed to."""
    launcher: Any = kernel.function
    if type(launcher).__name__ != "InterpretedFunction":
        raise BackendError(
            f"kernel '{kernel.name}' was imported for compiling: set TRITON_INTERPRET=1 in the "
            "environment before anything imports triton."
        )
    assert len(pointers) == len(kernel.pointers)
    named = {name: tensor for (name, _), tensor in zip(kernel.pointers, pointers, strict=True)}
    for (name, dtype), tensor in zip(kernel.pointers, pointers, strict=True):
        found = str(tensor.dtype).removeprefix("torch.")
        assert found == dtype, f"{kernel.name}: '{name}' is {found}, not {dtype}"
    prepare()
    with torch.no_grad():
        launcher[kernel.grid(size)](**named, **kernel.constants)


def run_launches(
    launches: Sequence[Launch], size: Size, regions: Mapping[str, torch.Tensor],
    blobs: Mapping[str, int],
    run: Callable[[Launch, Size, list[torch.Tensor]], None] | None = None, *, slots: int = 0,
) -> None:  # fmt: skip
    """A step. regions: uint8 memory by parameter; blobs: offsets in the weights by name; run: what
    takes a launch and its pointers, the interpreter by default; slots: bytes in front of block 0 in
    the memory of `kv`.
    """
    for launch in launches:
        pointers = []
        for operand, (_, dtype) in zip(launch.operands, launch.kernel.pointers, strict=True):
            offset = operand.offset + (blobs[operand.blob] if operand.blob else 0)
            offset += slots if operand.parameter == "kv" else 0
            kind = getattr(torch, dtype)
            memory = regions[operand.parameter][offset:]
            whole = len(memory) // kind.itemsize * kind.itemsize
            pointers.append(memory[:whole].view(kind))
        if run is None:
            interpret(launch.kernel, size, *pointers)
        else:
            run(launch, size, pointers)
