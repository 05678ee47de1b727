"""Rows of a float table as float32, from the table or from the layout of the linear kernel.

A tied output layer and embedding are stored once, in the layout of the linear kernel.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.float_weights import FLOAT32, FloatWeights
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    row_chunks,
    store,
    vector_loop,
)
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError

__all__ = ["embedding"]


def embedding(k: int, *, weights: FloatWeights = FLOAT32, layout: str, cpu: Cpu) -> Kernel:
    """Pointers: ids (int64), weight, out float32 [rows, k].

    `layout` "rows": weight [V, k] of dtype weights.plain_storage; "linear": as pack_float has it.
    """
    if layout not in ("rows", "linear"):
        raise BackendError(f"embedding: layout '{layout}' is neither 'rows' nor 'linear'.")

    def body(thread: Expr, threads: Expr, rows: Expr, ids: Expr, weight: Expr, out: Expr) -> None:
        def chunk(row: Expr, column: Expr, columns: int) -> None:
            token = T.bind(ids[row])

            def piece(first: Expr, width: int) -> None:
                value = weights.plain(weight, token * k + (column + first), width)
                store(out, row * k + column + first, value, width)

            if layout == "rows":
                vector_loop(columns, cpu.lanes, piece)
                return
            with T.serial(0, columns) as i:
                value = weights.element(weight, k, token, column + i)
                T.buffer_store(out, value, [row * k + column + i])

        row_chunks(rows, k, cpu.lanes, thread, threads, chunk)

    name = kernel_name(f"embedding_{weights.name}", cpu, k=k, layout=layout)
    storage = weights.plain_storage if layout == "rows" else weights.storage
    return define(name, [("ids", "int64"), ("weight", storage), ("out", "float32")], body)
