"""Running a kernel's compiled code: PTX by a process that compiles, executed in this one.

A process interprets or compiles: tests of numbers interpret, so that PTX comes from a process of
its own, which this file is too; it stays for the kernels that follow.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import torch
from ptx_machine import run
from ptx_memory import GlobalMemory
from ptx_parse import Entry, parse
from triton_harness import SPARE, checked_grid

from graphwright.backends.triton.chips import chips_of
from graphwright.backends.triton.cubin import triton_code
from graphwright.backends.triton.kernels.kernel import TritonKernel

__all__ = ["call", "compiled", "execute"]


def call(
    kernel: TritonKernel, *tensors: torch.Tensor, spare: int = SPARE, capability: int = 80
) -> None:
    """As triton_harness.call, but of the compiled code, every pointer aligned."""
    execute(kernel, checked_grid(kernel, tensors, spare), *tensors, capability=capability)


def execute(
    kernel: TritonKernel, grid: tuple[int, int, int], *tensors: torch.Tensor, seed: int = 0,
    moved: Mapping[str, int] | None = None, capability: int = 80,
) -> None:  # fmt: skip
    """Programs in an order that `seed` gives; moved: as GlobalMemory's. Raises PtxError."""
    entry, shared = compiled(kernel, capability)
    buffers = {}
    for (name, _), tensor in zip(kernel.pointers, tensors, strict=True):
        assert tensor.is_contiguous(), name
        buffers[name] = tensor.view(-1).view(torch.uint8).numpy()
    memory = GlobalMemory(buffers, moved)
    addresses = [memory.address(name) for name in buffers]
    addresses += [0] * (len(entry.parameters) - len(addresses))
    order = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    random.Random(seed).shuffle(order)
    run(entry, memory, shared, grid, order, dict(zip(entry.parameters, addresses, strict=True)))


@cache
def compiled(kernel: TritonKernel, capability: int = 80) -> tuple[Entry, int]:
    """(the code, bytes of shared memory)."""
    compiler = _compiler()
    question = [
        kernel.function.fn.__module__, kernel.function.fn.__name__, kernel.pointers,
        dict(kernel.constants), kernel.num_warps, kernel.num_stages, capability,
    ]  # fmt: skip
    assert compiler.stdin and compiler.stdout
    compiler.stdin.write(json.dumps(question) + "\n")
    compiler.stdin.flush()
    answer = json.loads(compiler.stdout.readline() or '{"error": "the compiler has ended"}')
    assert "error" not in answer, answer["error"]
    return parse(answer["ptx"]), answer["shared"]


@cache
def _compiler() -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    atexit.register(process.kill)
    return process


def _answer(question: list[Any]) -> dict[str, Any]:
    module, name, pointers, constants, warps, stages, capability = question
    kernel = TritonKernel(
        name, getattr(import_module(module), name), tuple((a, b) for a, b in pointers), constants,
        lambda size: (1, 1, 1), warps, stages,
    )  # fmt: skip
    (chip,) = chips_of(f"cuda:sm_{capability}")
    made = triton_code(kernel, chip, frozenset(name for name, _ in pointers))
    return {"ptx": made.asm["ptx"], "shared": made.metadata.shared}


def main() -> None:
    import triton

    triton.knobs.compilation.disable_line_info = True
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line))
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
