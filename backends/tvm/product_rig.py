"""Times matrix products on this machine for autotuning, each candidate a kernel of its own."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tvm import ir
from tvm.ir import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from graphwright.backends.blobs import BlobTable
from graphwright.backends.tuning import Choice, Picks, Run
from graphwright.backends.tvm.build import lower_program
from graphwright.backends.tvm.importing import default_environment
from graphwright.backends.tvm.kernels.float_weights import FloatWeights
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.linear_float import float_tilings, linear_float
from graphwright.backends.tvm.kernels.linear_quantized import (
    linear_quantized,
    tilings_of,
    weight_pointers,
)
from graphwright.backends.tvm.kernels.matmul import TILE
from graphwright.backends.tvm.kernels.pipeline import compile_module
from graphwright.backends.tvm.kernels.quantize_rows import group_count, padded, row_size
from graphwright.backends.tvm.kv_layout import KvLayout
from graphwright.backends.tvm.product_choices import candidate_tilings
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.program import Program
from graphwright.ir.schemes import Scheme

__all__ = ["ProductRig", "choices_of"]

COLD = 64 << 20  # bytes of weights between two reads of the same, as far as a program has as many
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_FILL = {"float32": 0.01, "float16": 0.01, "int8": 3, "uint8": 0x57, "int32": 0x3C003C00}


@dataclass(frozen=True)
class ProductRig:
    """A Rig (backends/tuning) for the choices of product_choices.py.

    weight_bytes: of the program; a small one's weights stay in the cache from step to step.
    """

    cpu: Cpu
    threads: int
    weight_bytes: int

    @property
    def machine(self) -> str:
        """Processor, level, threads, version, kernels; and whether weights are in the cache."""
        kind = "cached" if self.weight_bytes < COLD else "streamed"
        return (
            f"tvm; {_processor()}; {self.cpu.name}; {self.threads} threads; {kind}; "
            f"graphwright {version('graphwright')}, kernels {_kernel_sources()}"
        )

    @contextmanager
    def prepare(self, choice: Choice) -> Iterator[Mapping[str, Run]]:
        """Kernels for all candidates in one module, and memory that they share."""
        shape = {name: int(value) for name, value in choice.shape}
        kind, rows = choice.kernel.removeprefix("linear_"), shape["rows"]
        built = {name: self._kernel(kind, shape, name) for name in choice.candidates}
        types = _pointers(kind)
        module = _module(list(built.values()), types, self.cpu)
        kept: list[NDArray[np.uint8]] = []
        calls = self._calls(kind, types, shape, kept)
        with default_environment("TVM_NUM_THREADS", str(self.threads)):
            # the first launch of a process starts TVM's threads: else for half of the CPUs
            module[f"run_{next(iter(built.values())).name}"](rows, self.threads, *calls[0])

        def runner(kernel: Kernel) -> Run:
            entry = module[f"run_{kernel.name}"]

            def run() -> float:
                start = time.perf_counter()
                for call in calls:
                    entry(rows, self.threads, *call)
                return (time.perf_counter() - start) / len(calls)

            return run

        yield {name: runner(kernel) for name, kernel in built.items()}

    def _kernel(self, kind: str, shape: Mapping[str, int], candidate: str) -> Kernel:
        n, k, rows = shape["n"], shape["k"], shape["rows"]
        if kind in _DTYPES:
            weights = FloatWeights.of(_DTYPES[kind])
            blocks = candidate_tilings(rows, candidate, float_tilings(self.cpu, weights))
            return linear_float(
                n, k, weights=weights, x_stride=k, max_rows=rows, tilings=blocks, cpu=self.cpu
            )
        scheme = Scheme.parse(kind)
        blocks = candidate_tilings(rows, candidate, tilings_of(self.cpu, scheme))
        return linear_quantized(n, k, scheme, max_rows=rows, tilings=blocks, cpu=self.cpu)

    def _calls(
        self, kind: str, types: list[tuple[str, str]], shape: Mapping[str, int],
        kept: list[NDArray[np.uint8]],
    ) -> list[list[ctypes.c_void_p]]:  # fmt: skip
        """The pointers of each call into memory in `kept`: each call has weights of its own, so
        that they are read from where a step reads them."""
        sizes = _sizes(kind, shape["n"], shape["k"], shape["rows"])
        weight = sum(sizes[name] for name, _ in types if name.startswith("weight"))
        copies = max(1, min(COLD, self.weight_bytes) // weight)
        calls: list[list[ctypes.c_void_p]] = [[] for _ in range(copies)]
        for name, dtype in types:
            own = copies if name.startswith("weight") else 1
            step = -(-sizes[name] // 64) * 64
            memory = _memory(own * step, dtype)
            kept.append(memory)
            for number, call in enumerate(calls):
                at = memory.ctypes.data + (number % own) * step
                call.append(ctypes.c_void_p(at))
        return calls


def choices_of(
    program: Program, cpu: Cpu, threads: int
) -> tuple[dict[Choice, int], ProductRig]:  # fmt: skip
    """What a planned program leaves open, by how many kernels ask, and what times it."""
    picks, blobs = Picks(), BlobTable()
    kv = KvLayout.of(program.states, program.info.max_context)
    lower_program(program, cpu, kv, blobs, picks)
    return dict(picks.asked), ProductRig(cpu, threads, blobs.bytes)


def _pointers(kind: str) -> list[tuple[str, str]]:
    """Names and dtypes of a product's pointers, without an epilogue's."""
    if kind in _DTYPES:
        storage = FloatWeights.of(_DTYPES[kind]).storage
        return [("x", "float32"), ("weight", storage), ("out", "float32")]
    weights = weight_pointers(Scheme.parse(kind))
    return [("x", "int8"), ("x_scale", "float32"), *weights, ("out", "float32")]


def _sizes(kind: str, n: int, k: int, rows: int) -> dict[str, int]:
    """Bytes behind each pointer."""
    channels = -(-n // TILE) * TILE
    out = {"out": 4 * rows * channels}
    if kind in _DTYPES:
        weights = FloatWeights.of(_DTYPES[kind])
        size = weights.tile_size(k) * np.dtype(weights.storage).itemsize
        return {"x": 4 * rows * k, "weight": channels // TILE * size, **out}
    scheme = Scheme.parse(kind)
    groups = group_count(k, scheme.group)
    return {
        "x": rows * row_size(k, scheme.group), "x_scale": 4 * rows * groups,
        "weight": channels * padded(k) * scheme.bits // 8,
        "weight_scale": channels * groups * (4 if scheme.bits == 8 else 2),
        "weight_zero": channels * groups, **out,
    }  # fmt: skip


def _memory(size: int, dtype: str) -> NDArray[np.uint8]:
    """Pages, huge ones where the system gives them, of a small number everywhere."""
    mapping = mmap.mmap(-1, size + 64)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(mapping, np.uint8)[:size]
    memory[: size // 64 * 64].view(dtype)[:] = _FILL[dtype]
    return memory


def _module(kernels: list[Kernel], types: list[tuple[str, str]], cpu: Cpu) -> Any:
    """A function run_NAME(rows, threads, *pointers) for each kernel."""
    functions: dict[Any, Any] = {}
    for kernel in kernels:
        name, entry = ir.GlobalVar(kernel.name), f"run_{kernel.name}"
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(entry)
            T.func_attr({"global_symbol": entry})
            T.func_ret(ir.PrimType("int32"))
            rows, threads = T.arg("rows", T.int32()), T.arg("threads", T.int32())
            pointers = [T.arg(name, T.handle(dtype)) for name, dtype in types]
            with T.parallel(0, threads) as thread:
                T.evaluate(name(thread, threads, rows, *pointers))
            T.Return(T.int32(0))
        functions |= {name: kernel.func, ir.GlobalVar(entry): builder.get()}
    return compile_module(IRModule(functions), cpu)


def _kernel_sources() -> str:
    """A digest of the kernels' code: what was measured of other code says nothing."""
    digest = hashlib.sha256()
    for file in sorted((Path(__file__).parent / "kernels").glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _processor() -> str:
    """The name of the CPU, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or platform.machine())
