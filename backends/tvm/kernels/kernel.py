"""What a kernel is: a private PrimFunc called once per thread, and how one is written down.

A kernel is ``(thread: int32, threads: int32, rows: int32, *pointers) -> int32`` returning 0. The
step function calls it once per thread inside one parallel launch, with a barrier after each kernel;
it splits its own work by (thread, threads) and touches nothing outside. It allocates nothing.

`define` writes one with TVM's statement builder, so that Python loops unroll and Python functions
inline: a vector assigned to a name in a TVMScript body would become a buffer instead of a register.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import ir
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script import builder as T

__all__ = ["PLAIN", "Expr", "Kernel", "define", "partition", "registers"]

PLAIN = "graphwright.plain"  # function attribute: nothing to lower before code generation
Expr: TypeAlias = (
    Any  # a TVM expression, variable or buffer: TVM's Python API has no types of its own
)


@dataclass(frozen=True)
class Kernel:
    """`name` is derived from every static parameter: equal names mean identical kernels."""

    name: str
    func: PrimFunc


def define(name: str, pointers: Sequence[tuple[str, str]], body: Callable[..., None]) -> Kernel:
    """The kernel whose statements `body(thread, threads, rows, *buffers)` emits.

    `pointers` are (name, dtype); each arrives in `body` as a flat buffer to be indexed by element,
    or by ``T.ramp(first, 1, lanes)`` for a vector, aligned to one element.
    """
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, PLAIN: True})
        T.func_ret(ir.PrimType("int32"))
        scalars = [T.arg(each, T.int32()) for each in ("thread", "threads", "rows")]
        handles = [T.arg(each, T.handle(dtype)) for each, dtype in pointers]
        buffers = [
            T.decl_buffer((2**31 - 1,), dtype, data=handle)
            for handle, (_, dtype) in zip(handles, pointers, strict=True)
        ]
        body(*scalars, *buffers)
        T.Return(T.int32(0))
    return Kernel(name, builder.get())


def partition(count: Expr, thread: Expr, threads: Expr) -> tuple[Expr, Expr]:
    """[first, last) of this thread: contiguous, in thread order, sizes differing by at most one."""
    first = T.bind(T.truncdiv(count * thread, threads))
    last = T.bind(T.truncdiv(count * (thread + 1), threads))
    return first, last


def registers(count: int, lanes: int, dtype: str = "float32") -> list[Expr]:
    """`count` vectors that LLVM keeps in registers while every index into them is constant.

    One small buffer each in scope "global": larger than 1023 bytes, or in scope "local", TVM would
    allocate them from its workspace on the heap, at every execution of the statement.
    """
    return [T.alloc_buffer((lanes,), dtype, layout=None) for _ in range(count)]
