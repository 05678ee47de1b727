"""Puts the segments of attention together: the second half of Flash-Decoding (Dao et al., 2023)."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.append_kv import block_name
from graphwright.backends.tvm.kernels.attention import for_each_tile
from graphwright.backends.tvm.kernels.attention_shape import AttentionShape, Operands, Tile
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition, registers
from graphwright.backends.tvm.kernels.kv_values import KvBlock
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    settle,
    spread,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.vector import constant, fma, vexp2_of_negative
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.masks import Mask
from graphwright.ir.memory import ATTENTION_SEGMENTS

__all__ = ["attention_combine"]


def attention_combine(heads: int, block: KvBlock, *, mask: Mask, max_rows: int, cpu: Cpu) -> Kernel:
    """Pointers: batch, positions, query_start, partial, out [T, heads * value_dim].

    Of every token that came alone in attention with the same `max_rows`: its segments' sums of
    values, each scaled to the largest maximum of all, added up in order, over the sum of the
    weights.
    """
    shape = AttentionShape(heads, block, 0, 1.0, mask, 0.0, cpu.lanes, True, max_rows)

    def body(
        thread: Expr, threads: Expr, rows: Expr, batch: Expr, positions: Expr, query_start: Expr,
        partial: Expr, out: Expr,
    ) -> None:  # fmt: skip
        given = Operands(
            batch, None, None, None, positions, query_start, None, out, partial=partial
        )

        def combine(tile: Tile) -> None:
            if not tile.split(shape):
                return
            segments = settle(tile.segments(shape), "int32")
            first, last = partition(T.int32(heads), thread, threads)
            with T.serial(first, last) as head:
                _combine_head(shape, given, tile, segments, head)

        for_each_tile(shape, given, rows, combine)

    name = kernel_name(
        "attention_combine", cpu, h=heads, block=block_name(block), mask=mask,
        tile=shape.tile_tokens,
    )  # fmt: skip
    pointers = [("batch", "int32"), ("positions", "int64"), ("query_start", "int32")]
    return define(name, [*pointers, ("partial", "float32"), ("out", "float32")], body)


def _combine_head(
    shape: AttentionShape, given: Operands, tile: Tile, segments: Expr, head: Expr
) -> None:
    start = T.bind(tile.first * shape.partial_stride)
    out = T.bind((tile.first * shape.heads + head) * shape.value_dim)
    (weights,) = registers(1, ATTENTION_SEGMENTS)
    top, total = registers(2, 1)
    T.buffer_store(top, given.partial[start + shape.partial_state(0, head)], [0])
    with T.serial(1, segments) as number:
        found = given.partial[start + shape.partial_state(number, head)]
        T.buffer_store(top, tirx.max(top[0], found), [0])
    T.buffer_store(total, T.float32(0), [0])
    with T.serial(0, segments) as number:
        at = T.bind(start + shape.partial_state(number, head))
        weight = settle(vexp2_of_negative(given.partial[at] - top[0], 1), "float32")
        T.buffer_store(weights, weight, [number])
        T.buffer_store(total, total[0] + weight * given.partial[at + 1], [0])
    one = T.float32(1)
    factor = settle(tirx.Select(total[0] > T.float32(0), one / total[0], T.float32(0)), "float32")

    def columns(first: Expr, width: int) -> None:
        (sums,) = registers(1, width)
        store(sums, 0, constant(0.0, width), width)
        with T.serial(0, segments) as number:
            at = start + shape.partial_row(number, head) + first
            weight = spread(weights[number], width)
            values = load(given.partial, at, width)
            store(sums, 0, fma(weight, values, load(sums, 0, width), width), width)
        store(given.out, out + first, load(sums, 0, width) * spread(factor, width), width)

    vector_loop(shape.value_dim, shape.lanes, columns)
