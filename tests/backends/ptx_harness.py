"""Running a kernel's compiled code: PTX by a process that compiles, executed in this one.

A process interprets or compiles: tests of numbers interpret, so that PTX comes from a process of
its own, which this file is too; it stays for the kernels that follow.
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ptx_machine import run
from ptx_memory import BASE_ALIGNMENT, GlobalMemory
from ptx_parse import Entry, parse
from triton_harness import SPARE, begins_early, checked_grid

from graphwright.backends.triton.chips import chips_of
from graphwright.backends.triton.cubin import triton_code
from graphwright.backends.triton.generated import load
from graphwright.backends.triton.kernels.kernel import Size, TritonKernel
from graphwright.backends.triton.launches import Launch
from graphwright.backends.triton.package import aligned_pointers

__all__ = ["SETTLED", "call", "compiled", "execute", "run_launch"]

# Pointers to what no launch writes, or only a step's first
SETTLED = re.compile(
    r"weight\d*|scale|zero|norm|before|bias|sinks|slopes|batch|positions|block_table"
)


def call(
    kernel: TritonKernel, *tensors: torch.Tensor, spare: int = SPARE, capability: int = 80
) -> None:
    """As triton_harness.call, but of the compiled code, every pointer aligned."""
    grid = checked_grid(kernel, tensors, spare)
    execute(kernel, grid, *tensors, capability=capability)


def run_launch(
    launch: Launch, size: Size, pointers: list[torch.Tensor], capability: int = 80
) -> None:
    """For run_launches: alignments as in the artifact."""
    moved = {
        name: (operand.offset - _in_front(launch.kernel, name, tensor)) % BASE_ALIGNMENT
        for (name, _), operand, tensor in zip(
            launch.kernel.pointers, launch.operands, pointers, strict=True
        )
    }
    execute(
        launch.kernel, launch.kernel.grid(size), *pointers, moved=moved, capability=capability,
        aligned=aligned_pointers(launch),
    )  # fmt: skip


def execute(
    kernel: TritonKernel, grid: tuple[int, int, int], *tensors: torch.Tensor, seed: int = 0,
    moved: Mapping[str, int] | None = None, capability: int = 80,
    aligned: frozenset[str] | None = None,
) -> None:  # fmt: skip
    """Programs in an order that `seed` gives; moved: as GlobalMemory's; aligned: pointers that the
    code may take for multiples of 16, by default all. Early code may read what is SETTLED before it
    waits. Raises PtxError.
    """
    entry, shared = compiled(kernel, capability, aligned)
    buffers = {}
    for (name, _), tensor in zip(kernel.pointers, tensors, strict=True):
        assert tensor.is_contiguous(), name
        buffers[name] = _buffer(tensor, _in_front(kernel, name, tensor))
    constants = {name: np.frombuffer(data, np.uint8) for name, data in entry.constants.items()}
    (chip,) = chips_of(f"cuda:sm_{capability}")
    settled = frozenset(constants) | {name for name in buffers if SETTLED.fullmatch(name)}
    early = chip.early and begins_early(kernel)
    memory = GlobalMemory(buffers | constants, moved, settled if early else None)
    addresses = [
        memory.address(name) + _in_front(kernel, name, tensor)
        for name, tensor in zip(buffers, tensors, strict=True)
    ]
    addresses += [0] * (len(entry.parameters) - len(addresses))
    order = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    random.Random(seed).shuffle(order)
    run(entry, memory, shared, grid, order, dict(zip(entry.parameters, addresses, strict=True)))


def _in_front(kernel: TritonKernel, name: str, tensor: torch.Tensor) -> int:
    """Bytes in front of what a pointer points to that are there, too: the slots of a recurrence."""
    scan = kernel.name.startswith("scan") and name == "state"
    return int(tensor.storage_offset()) * tensor.itemsize if scan else 0


def _buffer(tensor: torch.Tensor, in_front: int) -> NDArray[np.uint8]:
    """The bytes of a tensor, and so many that lie in front of it."""
    more = in_front // tensor.itemsize
    first = int(tensor.storage_offset()) - more
    whole = tensor.as_strided((more + tensor.numel(),), (1,), first).view(torch.uint8)
    found: NDArray[np.uint8] = whole.numpy()
    return found


@cache
def compiled(
    kernel: TritonKernel, capability: int = 80, aligned: frozenset[str] | None = None
) -> tuple[Entry, int]:
    """(the code, bytes of shared memory), of pointers as `execute` has them."""
    compiler = _compiler()
    aligned = frozenset(name for name, _ in kernel.pointers) if aligned is None else aligned
    function = kernel.function.fn
    question = [
        function.__module__, inspect.getfile(function), function.__name__, kernel.pointers,
        dict(kernel.constants), kernel.num_warps, kernel.num_stages, kernel.fused, capability,
        sorted(aligned),
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
    module, file, name, pointers, constants, warps, stages, fused, capability, aligned = question
    if module.startswith(("region_", "scan_")):  # generated
        function = load(Path(file).read_text(), name)
    else:
        function = getattr(import_module(module), name)
    kernel = TritonKernel(
        name, function, tuple((a, b) for a, b in pointers), constants, lambda size: (1, 1, 1),
        warps, stages, fused,
    )  # fmt: skip
    (chip,) = chips_of(f"cuda:sm_{capability}")
    made = triton_code(kernel, chip, frozenset(aligned))
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
