"""Rows of a table, from the table itself or from the layout it has as the weight of a linear layer.

A tied output layer and embedding are stored once, in the layout of the linear kernel.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    row_chunks,
    store,
    vector_loop,
)
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError

__all__ = ["embedding"]

TILE = 16  # rows of a tile of the packed float32 weight [ceil(V / 16), K, 16]


def embedding(k: int, *, layout: str, cpu: Cpu) -> Kernel:
    """Pointers: ids (int64), weight (float32), out [rows, k].

    `layout` "rows": weight [V, k]; "linear": [ceil(V / 16), k, 16] as linear_f32 packs it.
    """
    if layout not in ("rows", "linear"):
        raise BackendError(f"embedding: layout '{layout}' is neither 'rows' nor 'linear'.")

    def body(thread: Expr, threads: Expr, rows: Expr, ids: Expr, weight: Expr, out: Expr) -> None:
        def chunk(row: Expr, column: Expr, columns: int) -> None:
            token = T.bind(ids[row])

            def piece(first: Expr, width: int) -> None:
                value = load(weight, token * k + (column + first), width)
                store(out, row * k + column + first, value, width)

            if layout == "rows":
                vector_loop(columns, cpu.lanes, piece)
                return
            with T.serial(0, columns) as i:
                tile = token // TILE * k + (column + i)
                T.buffer_store(out, weight[tile * TILE + token % TILE], [row * k + column + i])

        row_chunks(rows, k, cpu.lanes, thread, threads, chunk)

    name = kernel_name("embedding", cpu, k=k, layout=layout)
    return define(name, [("ids", "int64"), ("weight", "float32"), ("out", "float32")], body)
