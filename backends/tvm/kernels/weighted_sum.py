"""out = Σ_s weights[s] * y[s], in the order of s: the experts' results put together."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    row_chunks,
    spread,
    store,
    vector_loop,
)
from graphwright.backends.tvm.target import Cpu

__all__ = ["weighted_sum"]


def weighted_sum(n: int, slots: int, *, y_stride: int, weights_stride: int, cpu: Cpu) -> Kernel:
    """Pointers: y [rows, slots, N], weights [rows, slots] with these strides, out [rows, N]."""

    def body(thread: Expr, threads: Expr, rows: Expr, y: Expr, weights: Expr, out: Expr) -> None:
        def chunk(row: Expr, column: Expr, columns: int) -> None:
            def piece(first: Expr, width: int) -> None:
                at = row * y_stride + column + first
                total = load(y, at, width) * spread(weights[row * weights_stride], width)
                for slot in range(1, slots):
                    weight = spread(weights[row * weights_stride + slot], width)
                    total = T.bind(total + load(y, at + slot * n, width) * weight)
                store(out, row * n + column + first, total, width)

            vector_loop(columns, cpu.lanes, piece)

        row_chunks(rows, n, cpu.lanes, thread, threads, chunk)

    name = kernel_name("weighted_sum", cpu, n=n, s=slots, y=y_stride, by=weights_stride)
    return define(name, [(each, "float32") for each in ("y", "weights", "out")], body)
