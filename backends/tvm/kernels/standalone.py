"""One kernel as a Python function of numpy arrays, for tests and benchmarks; not for programs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import ir
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.pipeline import compile_module
from graphwright.backends.tvm.kernels.stage import ALIGNMENT
from graphwright.backends.tvm.target import Cpu

__all__ = ["aligned", "assembly", "build", "standalone"]

Run = Callable[..., None]


def standalone(kernel: Kernel, dtypes: Sequence[str], cpu: Cpu) -> Run:
    """run(rows, threads, *arrays) for a kernel of len(dtypes) pointers, in one parallel launch.

    Arrays are contiguous numpy arrays of these dtypes. A 64-byte aligned one is used in place; any
    other is copied in and, when writable, back. None stands for a null pointer.
    """
    entry = build(kernel, dtypes, cpu)["main"]

    def run(rows: int, threads: int, *arrays: np.ndarray | None) -> None:
        if len(arrays) != len(dtypes):
            raise TypeError(f"{kernel.name} takes {len(dtypes)} arrays, got {len(arrays)}")
        for array, dtype in zip(arrays, dtypes, strict=True):
            if array is not None and (str(array.dtype) != dtype or not array.flags.c_contiguous):
                raise TypeError(f"{kernel.name}: expected contiguous {dtype}, got {array.dtype}")
        used = [None if array is None else aligned(array) for array in arrays]
        entry(
            rows, threads, *(ctypes.c_void_p(a.ctypes.data if a is not None else 0) for a in used)
        )
        for array, copy in zip(arrays, used, strict=True):
            if array is not None and copy is not array and array.flags.writeable:
                array[...] = copy

    return run


def build(kernel: Kernel, dtypes: Sequence[str], cpu: Cpu) -> Any:
    """The compiled module, its entry ``main(rows, threads, *pointers)``."""
    name = ir.GlobalVar(kernel.name)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"global_symbol": "main"})
        T.func_ret(ir.PrimType("int32"))
        rows, threads = T.arg("rows", T.int32()), T.arg("threads", T.int32())
        pointers = [T.arg(f"p{i}", T.handle(dtype)) for i, dtype in enumerate(dtypes)]
        with T.parallel(0, threads) as thread:
            T.evaluate(name(thread, threads, rows, *pointers))
        T.Return(T.int32(0))
    module = tvm.IRModule({name: kernel.func, ir.GlobalVar("main"): builder.get()})
    return compile_module(module, cpu)


def assembly(kernel: Kernel, dtypes: Sequence[str], cpu: Cpu) -> str:
    """What LLVM made of the kernel, as text."""
    return str(build(kernel, dtypes, cpu).mod.inspect_source("asm"))


def aligned(array: np.ndarray) -> np.ndarray:
    """The array itself if its data starts on 64 bytes, else an aligned copy."""
    if array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous:
        return array
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
