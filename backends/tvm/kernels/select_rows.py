"""out = x[rows]: the tokens whose logits are wanted."""

from __future__ import annotations

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    row_chunks,
    store,
    vector_loop,
)
from graphwright.backends.tvm.target import Cpu

__all__ = ["select_rows"]


def select_rows(k: int, *, x_stride: int, cpu: Cpu) -> Kernel:
    """Pointers: x (rows of k elements), rows (int32, one per row of the result), out [rows, k]."""

    def body(thread: Expr, threads: Expr, rows: Expr, x: Expr, chosen: Expr, out: Expr) -> None:
        def chunk(row: Expr, column: Expr, columns: int) -> None:
            def piece(first: Expr, width: int) -> None:
                value = load(x, chosen[row] * x_stride + column + first, width)
                store(out, row * k + column + first, value, width)

            vector_loop(columns, cpu.lanes, piece)

        row_chunks(rows, k, cpu.lanes, thread, threads, chunk)

    name = kernel_name("select_rows", cpu, k=k, x=x_stride)
    return define(name, [("x", "float32"), ("rows", "int32"), ("out", "float32")], body)
