"""Attention of a ragged batch over the paged cache: who computes what.

The queries of one sequence are cut into tiles of consecutive tokens. Tokens behind a sequence's
last whole tile, and those of sequences that decode, are tiles of one token; where `split`, their
keys are cut into segments (Flash-Decoding, Dao et al., 2023), which `attention_combine.py` puts
together. A tile, an item (some heads) and a segment are one unit. Units differ in cost by the keys
they see, so threads get contiguous ranges of equal cost, segment by segment. Units of one token and
segment are computed together, as runs, by `attention_tile.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.append_kv import advance, block_name
from graphwright.backends.tvm.kernels.attention_shape import (
    AttentionShape,
    Operands,
    Tile,
    segment_start,
)
from graphwright.backends.tvm.kernels.attention_tile import Run, compute
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, registers
from graphwright.backends.tvm.kernels.kv_values import KvBlock
from graphwright.backends.tvm.kernels.loops import kernel_name, quotient, settle
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError
from graphwright.ir.masks import Mask

__all__ = ["attention", "for_each_tile"]


def attention(
    heads: int, block: KvBlock, *, q_stride: int, scale: float, mask: Mask, softcap: float,
    slopes: bool, sinks: bool, split: bool = False, max_rows: int, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """Pointers: batch, q, k_cache, v_cache, (k_scale, v_scale), positions, query_start,
    block_table, (slopes [heads]), (sinks [heads]), (partial), out [T, heads * value_dim].

    As gw.cached_attention, after append_kv. Positions must rise by one within a sequence.
    split: tokens that come alone leave their results in `partial`, as attention_combine takes them.
    A call may have up to `max_rows` tokens.
    """
    if heads % block.kv_heads:
        raise BackendError(
            f"attention: {heads} heads cannot share {block.kv_heads} key heads evenly."
        )
    shape = AttentionShape(
        heads, block, q_stride, scale, mask, softcap, cpu.lanes, split, max_rows,
        pmaddwd="avx2" in cpu.features,
    )  # fmt: skip
    pointers = [("batch", "int32"), ("q", "float32"), *block.pointers, ("positions", "int64")]
    pointers += [("query_start", "int32"), ("block_table", "int32")]
    pointers += [("slopes", "float32")] * slopes + [("sinks", "float32")] * sinks
    pointers += [("partial", "float32")] * split + [("out", "float32")]

    def body(thread: Expr, threads: Expr, rows: Expr, *buffers: Expr) -> None:
        given = Operands(**{name: each for (name, _), each in zip(pointers, buffers, strict=True)})
        _for_each_share(shape, given, thread, threads, rows)

    name = kernel_name(
        "attention", cpu, h=heads, block=block_name(block), qs=q_stride, by=scale, mask=mask,
        cap=softcap, slopes=slopes, sinks=sinks, split=split, tile=shape.tile_tokens,
    )  # fmt: skip
    return define(name, pointers, body)


def _for_each_share(
    shape: AttentionShape, given: Operands, thread: Expr, threads: Expr, rows: Expr
) -> None:
    """Walks over the tiles twice: to add up their costs, and to compute this thread's."""
    total, before = registers(2, 1, "int64")
    T.buffer_store(total, T.int64(0), [0])
    T.buffer_store(before, T.int64(0), [0])

    def measure(tile: Tile) -> tuple[Expr, Expr, Expr, Expr]:
        """Its blocks, its segments, its units, and what each of them costs."""
        blocks = settle(tile.count_blocks(shape.mask), "int32")
        segments = settle(tile.segments(shape), "int32")
        units = settle(segments * shape.items, "int32")
        size = quotient(blocks + segments - 1, segments)
        return blocks, segments, units, settle(tirx.Cast("int64", size * tile.tokens), "int64")

    def count(tile: Tile) -> None:
        _, _, units, cost = measure(tile)
        T.buffer_store(total, total[0] + cost * tirx.Cast("int64", units), [0])

    for_each_tile(shape, given, rows, count)
    low = T.bind(quotient(total[0] * thread, threads))
    high = T.bind(quotient(total[0] * (thread + 1), threads))

    def share(tile: Tile) -> None:
        blocks, segments, units, cost = measure(tile)
        first = settle(_started(low - before[0], cost, units), "int32")
        last = settle(_started(high - before[0], cost, units), "int32")
        T.buffer_store(before, before[0] + cost * tirx.Cast("int64", units), [0])
        items, run = shape.items, shape.run_items if tile.tokens == 1 else 1
        with T.serial(quotient(first, items), quotient(last + items - 1, items)) as number:
            begin = settle(segment_start(number, segments, blocks), "int32")
            end = settle(segment_start(number + 1, segments, blocks), "int32")
            low_item = settle(tirx.max(first - number * items, T.int32(0)), "int32")
            high_item = settle(tirx.min(last - number * items, T.int32(items)), "int32")
            with T.serial(0, quotient(high_item - low_item + run - 1, run)) as turn:
                start = T.bind(low_item + turn * run)
                count = settle(tirx.min(high_item - start, T.int32(run)), "int32")
                compute(shape, given, tile, Run(start, count, run), number, begin, end)

    for_each_tile(shape, given, rows, share)


def _started(cost_before: Expr, cost: Expr, units: Expr) -> Expr:
    """How many of a tile's units, each of `cost`, start less than `cost_before` after its start."""
    count = tirx.min(quotient(cost_before + cost - 1, cost), tirx.Cast("int64", units))
    return tirx.Cast("int32", tirx.max(count, T.int64(0)))


def for_each_tile(
    shape: AttentionShape, given: Operands, rows: Expr, body: Callable[[Tile], None]
) -> None:
    """Emits body for whole tiles and for tiles of one token, inside a loop over the batch."""
    token, sequence = registers(2, 1, "int32")
    T.buffer_store(token, T.int32(0), [0])
    T.buffer_store(sequence, T.int32(0), [0])

    def one(tokens: int) -> None:
        first = settle(token[0], "int32")
        position = settle(tirx.Cast("int32", given.positions[first]), "int32")
        table = settle(sequence[0] * given.batch[2], "int32")
        body(Tile(first, tokens, position, table))
        T.buffer_store(token, first + tokens, [0])

    with T.While(token[0] < rows):
        advance(sequence, token[0], given.batch, given.query_start)
        if shape.tile_tokens == 1:
            one(1)
            return
        left = given.query_start[sequence[0] + 1] - token[0]
        with T.If(left >= shape.tile_tokens):
            with T.Then():
                one(shape.tile_tokens)
            with T.Else():
                one(1)
