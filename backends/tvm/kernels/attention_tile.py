"""Attention of one unit: the tokens of a tile, heads that share a key head, a segment of the keys.

Online softmax (Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022) over chunks of 64
keys. A pass holds a few query rows (a row is one head of one token), as many as the registers have
room for sums: a key or value that is loaded, and converted to float32, serves all of them. The
passes over a chunk follow each other while it is in the cache. The row of the result itself is the
accumulator. It is rescaled only when a chunk raises the row's maximum.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.attention_scores import LOG2_E, scale_output, score, weigh
from graphwright.backends.tvm.kernels.attention_shape import CHUNK, AttentionShape, Operands, Tile
from graphwright.backends.tvm.kernels.attention_work import Chunk, Pass, Unit
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, load_values
from graphwright.backends.tvm.kernels.loops import (
    load,
    quotient,
    settle,
    spread,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.vector import constant, fma

__all__ = ["compute"]

LOWEST = -1e30  # the maximum before the first key: finite, so that (masked - maximum) is no NaN


def compute(
    shape: AttentionShape, given: Operands, tile: Tile, item: Expr, segment: Expr, begin: Expr,
    end: Expr,
) -> None:  # fmt: skip
    """Emits the computation of one unit: `item` counts runs of heads; the tile's blocks `begin` to
    `end` are the segment with number `segment`."""
    head = T.bind(item * shape.item_heads)
    kv_head = T.bind(quotient(head, shape.group))
    states = registers(2, tile.tokens * shape.item_heads)
    unit = Unit(shape, given, tile, head, segment, *states)
    blocks = tuple(
        settle(each, "int32")
        for each in (
            tile.count_blocks(shape.mask),
            tile.first_blocks(shape.mask),
            tile.low_block(shape.mask),
        )
    )
    unit.each_pass(_begin)
    memory = Chunk.memory()
    with T.serial(0, quotient(end - begin + (CHUNK - 1), CHUNK)) as number:
        first = T.bind(begin + number * CHUNK)
        count = settle(tirx.min(end - first, T.int32(CHUNK)), "int32")
        chunk = Chunk.look_up(unit, kv_head, first, count, blocks, memory)

        def attend(work: Pass) -> None:
            scores = registers(work.rows, CHUNK * BLOCK_SIZE)
            score(work, chunk, scores)
            weigh(work, chunk, scores)
            _accumulate(work, chunk, scores)

        unit.each_pass(attend)
    unit.each_pass(_leave if unit.split else _finish)


def _begin(work: Pass) -> None:
    unit = work.unit
    for r in range(work.rows):
        top, total = T.float32(LOWEST), T.float32(0)
        if unit.given.sinks is not None:
            top = unit.given.sinks[work.head_at(r)] * T.float32(LOG2_E)
            total = T.float32(1)
            if unit.split:  # the sink is one key: it counts in one segment
                first = unit.segment == 0
                top = tirx.Select(first, top, T.float32(LOWEST))
                total = tirx.Select(first, total, T.float32(0))
        T.buffer_store(unit.tops, top, [work.first + r])
        T.buffer_store(unit.sums, total, [work.first + r])
        start = work.out_at(r)

        def clear(first: Expr, width: int, start: Expr = start) -> None:
            store(work.out, start + first, constant(0.0, width), width)

        vector_loop(unit.shape.value_dim, unit.shape.lanes, clear)


def _accumulate(work: Pass, chunk: Chunk, weights: Sequence[Expr]) -> None:
    """out += weights · values, over the keys that were written: others may hold anything."""
    shape, rows = work.unit.shape, [work.out_at(r) for r in range(work.rows)]

    def columns(first: Expr, width: int, vectors: int) -> None:
        sums = [registers(vectors, width) for _ in rows]
        for row, parts in zip(rows, sums, strict=True):
            for v, part in enumerate(parts):
                store(part, 0, load(work.out, row + first + v * width, width), width)
        with T.serial(0, chunk.count) as b:
            values = settle(chunk.values[b] + first, "int64")
            valid = tirx.min(chunk.valid - b * BLOCK_SIZE, T.int32(BLOCK_SIZE))
            with T.serial(0, valid) as j:
                at = T.bind(values + j * shape.value_dim)
                value = [
                    T.bind(
                        load_values(
                            work.unit.given.v_cache, at + v * width, width, shape.block.dtype
                        )
                    )
                    for v in range(vectors)
                ]
                for r, parts in enumerate(sums):
                    weight = T.bind(spread(weights[r][b * BLOCK_SIZE + j], width))
                    for v, part in enumerate(parts):
                        total = fma(weight, value[v], load(part, 0, width), width)
                        store(part, 0, total, width)
        for row, parts in zip(rows, sums, strict=True):
            for v, part in enumerate(parts):
                store(work.out, row + first + v * width, load(part, 0, width), width)

    lanes, together = shape.lanes, max(2, shape.vectors)
    wide = shape.value_dim // (lanes * together)
    with T.serial(0, wide) as i:
        columns(i * (lanes * together), lanes, together)
    done = wide * lanes * together
    vector_loop(shape.value_dim - done, lanes, lambda first, width: columns(done + first, width, 1))


def _finish(work: Pass) -> None:
    for r in range(work.rows):
        total = T.bind(work.unit.sums[work.first + r])
        factor = tirx.Select(total > T.float32(0), T.float32(1) / total, T.float32(0))
        scale_output(work, r, settle(factor, "float32"))


def _leave(work: Pass) -> None:
    """For attention_combine."""
    unit, shape = work.unit, work.unit.shape
    start = T.bind(unit.tile.first * shape.partial_stride)
    for r in range(work.rows):
        at = T.bind(start + shape.partial_state(unit.segment, work.head_at(r)))
        T.buffer_store(unit.given.partial, unit.tops[work.first + r], [at])
        T.buffer_store(unit.given.partial, unit.sums[work.first + r], [at + 1])
