"""Rows of an integer table with scales, from the table itself or from the layout of the products.

A tied output layer and embedding are stored once, in the layout of the linear kernel.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.int4_dot import RUN, UNIT
from graphwright.backends.tvm.kernels.int8_dot import QUAD
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.linear_quantized import weight_pointers
from graphwright.backends.tvm.kernels.linear_w4 import SYMMETRIC_ZERO
from graphwright.backends.tvm.kernels.loops import kernel_name, quotient, remainder, row_chunks
from graphwright.backends.tvm.kernels.matmul import TILE
from graphwright.backends.tvm.kernels.quantize_rows import group_count, padded
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError
from graphwright.ir.schemes import Scheme

__all__ = ["quantized_embedding"]


def quantized_embedding(k: int, scheme: Scheme, *, layout: str, cpu: Cpu) -> Kernel:
    """Pointers: ids (int64), weight, weight_scale, (weight_zero), out float32 [rows, k].

    `layout` "rows": the parts as layouts.table_quantized_layouts has them; "linear": as the kernel
    linear_quantized reads them.
    """
    if layout not in ("rows", "linear"):
        raise BackendError(
            f"quantized_embedding: layout '{layout}' is neither 'rows' nor 'linear'."
        )
    groups = group_count(k, scheme.group)
    packed, group = layout == "linear", k // groups

    def stored(weight: Expr, token: Expr, tile: Expr, lane: Expr, channel: Expr) -> Expr:
        """The integer of a token's channel."""
        if scheme.bits == 8:
            if not packed:
                return tirx.Cast("int32", weight[token * k + channel])
            quad = tile * (padded(k) * TILE) + quotient(channel, QUAD) * (TILE * QUAD)
            at = quad + lane * QUAD + remainder(channel, QUAD)
            return tirx.Cast("int32", weight[at])
        unit, inside = T.bind(quotient(channel, UNIT)), T.bind(remainder(channel, UNIT))
        half, inside = T.bind(quotient(inside, RUN)), T.bind(remainder(inside, RUN))
        if packed:
            line = (tile * (padded(k) // UNIT) + unit) * (RUN // QUAD) + quotient(inside, QUAD)
            at = (line * TILE + lane) * QUAD + remainder(inside, QUAD)
        else:
            at = (token * (padded(k) // UNIT) + unit) * RUN + inside
        both = tirx.Cast("int32", weight[at])
        return T.shift_right(both, half * 4) & T.int32(15)

    def body(thread: Expr, threads: Expr, rows: Expr, ids: Expr, *buffers: Expr) -> None:
        weight, scale, *zeros, out = buffers

        def chunk(row: Expr, column: Expr, columns: int) -> None:
            token = T.bind(ids[row])
            tile, lane = T.bind(quotient(token, TILE)), T.bind(remainder(token, TILE))
            target = T.bind(tirx.Cast("int64", row) * k)
            with T.serial(0, columns) as i:
                channel = T.bind(column + i)
                number = quotient(channel, group)
                at = (tile * groups + number) * TILE + lane if packed else token * groups + number
                value = stored(weight, token, tile, lane, channel)
                if zeros:
                    value = value - tirx.Cast("int32", zeros[0][at])
                elif scheme.bits == 4:
                    value = value - SYMMETRIC_ZERO
                real = tirx.Cast("float32", value) * tirx.Cast("float32", scale[at])
                T.buffer_store(out, real, [target + channel])

        row_chunks(rows, k, cpu.lanes, thread, threads, chunk)

    name = kernel_name("quantized_embedding", cpu, k=k, s=scheme, layout=layout)
    pointers = [("ids", "int64"), *weight_pointers(scheme), ("out", "float32")]
    return define(name, pointers, body)
