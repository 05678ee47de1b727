"""Rows of an int8 table with scales, from the table itself or from the layout of linear_w8.

A tied output layer and embedding are stored once, in the layout of the linear kernel.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.loops import kernel_name, quotient, remainder, row_chunks
from graphwright.backends.tvm.kernels.matmul import TILE
from graphwright.backends.tvm.kernels.quantize_rows import padded
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError

__all__ = ["quantized_embedding"]

QUAD = 4  # input channels that lie together in a packed weight


def quantized_embedding(k: int, groups: int, *, layout: str, cpu: Cpu) -> Kernel:
    """Pointers: ids (int64), weight (int8), scale (float32), out float32 [rows, k].

    `layout` "rows": weight [V, k], scale [V, groups]; "linear": both as linear_w8 packs them,
    [ceil(V / 16), K' / 4, 16, 4] and [ceil(V / 16), groups, 16].
    """
    if layout not in ("rows", "linear"):
        raise BackendError(
            f"quantized_embedding: layout '{layout}' is neither 'rows' nor 'linear'."
        )
    if k % groups:
        raise BackendError(f"quantized_embedding: {k} channels have no {groups} equal groups.")
    packed, group = layout == "linear", k // groups

    def body(
        thread: Expr, threads: Expr, rows: Expr, ids: Expr, weight: Expr, scale: Expr, out: Expr
    ) -> None:
        def chunk(row: Expr, column: Expr, columns: int) -> None:
            token = T.bind(ids[row])
            tile, lane = T.bind(quotient(token, TILE)), T.bind(remainder(token, TILE))
            target = T.bind(tirx.Cast("int64", row) * k)
            with T.serial(0, columns) as i:
                channel = T.bind(column + i)
                if packed:
                    quad = tile * (padded(k) * TILE) + quotient(channel, QUAD) * (TILE * QUAD)
                    at = quad + lane * QUAD + remainder(channel, QUAD)
                    scale_at = (tile * groups + quotient(channel, group)) * TILE + lane
                else:
                    at = token * k + channel
                    scale_at = token * groups + quotient(channel, group)
                value = tirx.Cast("float32", weight[at]) * scale[scale_at]
                T.buffer_store(out, value, [target + channel])

        row_chunks(rows, k, cpu.lanes, thread, threads, chunk)

    pointers = [("ids", "int64"), ("weight", "int8"), ("scale", "float32"), ("out", "float32")]
    name = kernel_name("quantized_embedding", cpu, k=k, g=groups, layout=layout)
    return define(name, pointers, body)
