"""Attention of units: the tokens of a tile, heads that share a key head, a segment of the keys.

Online softmax (Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022) over chunks of 64
keys. The units of a run share a segment and go through it together, chunk by chunk, and where the
keys are split also block by block, so that memory is read in the order of addresses. A pass holds a
few query rows (a row is one head of one token), as many as the registers have room for sums: a key
or value that is loaded, and converted to float32, serves all of them. The passes over a block, or
those of a tile over a chunk, follow each other while it is in the cache. The row of the result
itself is the accumulator. It is rescaled only when a chunk raises the row's maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.attention_fetch import (
    fetch_after_keys,
    fetch_after_values,
    fetch_keys,
    fetch_scales,
    fetch_values,
)
from graphwright.backends.tvm.kernels.attention_integers import Queries
from graphwright.backends.tvm.kernels.attention_scores import (
    LOG2_E,
    Scores,
    scale_output,
    score,
    weigh,
)
from graphwright.backends.tvm.kernels.attention_shape import CHUNK, AttentionShape, Operands, Tile
from graphwright.backends.tvm.kernels.attention_work import Chunk, Pass, Unit
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE
from graphwright.backends.tvm.kernels.loops import (
    load,
    quotient,
    settle,
    spread,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.vector import constant, fma

__all__ = ["Run", "compute"]

EachItem = Callable[[Callable[[Unit], None]], None]

LOWEST = -1e30  # the maximum before the first key: finite, so that (masked - maximum) is no NaN


@dataclass(frozen=True)
class Run:
    """`count` items from `first` on, at most `most`, that take turns at each chunk of keys."""

    first: Expr
    count: Expr
    most: int


def compute(
    shape: AttentionShape, given: Operands, tile: Tile, run: Run, segment: Expr, begin: Expr,
    end: Expr,
) -> None:  # fmt: skip
    """Emits the computation of the units of a run: the tile's blocks `begin` to `end` are the
    segment with number `segment`."""
    rows = tile.tokens * shape.item_heads
    states = registers(4, rows * run.most)
    blocks = tuple(
        settle(each, "int32")
        for each in (
            tile.count_blocks(shape.mask),
            tile.first_blocks(shape.mask),
            tile.low_block(shape.mask),
        )
    )

    def each_item(body: Callable[[Unit], None]) -> None:
        with T.serial(0, run.count) as i:
            head = T.bind((run.first + i) * shape.item_heads)
            body(Unit(shape, given, tile, head, segment, T.bind(i * rows), *states))

    memory, by_block = Chunk.memory(), tile.split(shape)
    each_item(lambda unit: unit.each_pass(_begin))
    if by_block:
        each_item(lambda unit: unit.each_pass(lambda work: Queries.in_memory(work).write(work)))
    with T.serial(0, quotient(end - begin + (CHUNK - 1), CHUNK)) as number:
        first = T.bind(begin + number * CHUNK)
        count = settle(tirx.min(end - first, T.int32(CHUNK)), "int32")
        chunk = Chunk.look_up(shape, given, tile, first, count, blocks, memory)

        (_attend_by_block if by_block else _attend_by_pass)(each_item, chunk)
    finish = _leave if by_block else _finish
    each_item(lambda unit: unit.each_pass(finish))


def _attend_by_pass(each_item: EachItem, chunk: Chunk) -> None:
    """A pass goes through the chunk, then the next one: sums of values stay in registers."""

    def attend(work: Pass) -> None:
        queries, scores = Queries.of_pass(work), Scores.in_registers(work)
        with T.serial(0, chunk.count) as b:
            score(work, chunk, b, queries, scores, partial(fetch_keys, work, chunk, b))
        weigh(work, chunk, scores)
        _accumulate(work, chunk, (T.int32(0), chunk.count), scores, fetch_values)

    each_item(lambda unit: unit.each_pass(attend))


def _attend_by_block(each_item: EachItem, chunk: Chunk) -> None:
    """All units go through a block, then through the next one: memory is read as it lies."""

    with T.serial(0, chunk.count) as b:

        def score_block(work: Pass) -> None:
            if work.unit.shape.block.scaled:
                fetch_scales(work, chunk, b)
            queries, scores = Queries.in_memory(work), Scores.in_partial(work)
            score(work, chunk, b, queries, scores, partial(fetch_after_keys, work, chunk, b))

        each_item(lambda unit: unit.each_pass(score_block))
    each_item(lambda unit: unit.each_pass(lambda work: weigh(work, chunk, Scores.in_partial(work))))
    with T.serial(0, chunk.count) as b:

        def add_values(work: Pass) -> None:
            _accumulate(work, chunk, (b, b + 1), Scores.in_partial(work), fetch_after_values)

        each_item(lambda unit: unit.each_pass(add_values))


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
        T.buffer_store(unit.tops, top, [work.state_at(r)])
        T.buffer_store(unit.sums, total, [work.state_at(r)])
        start = work.out_at(r)

        def clear(first: Expr, width: int, start: Expr = start) -> None:
            store(work.out, start + first, constant(0.0, width), width)

        vector_loop(unit.shape.value_dim, unit.shape.lanes, clear)


def _accumulate(
    work: Pass, chunk: Chunk, blocks: tuple[Expr, Expr], weights: Scores,
    fetch: Callable[[Pass, Chunk, Expr, Expr, int], None],
) -> None:  # fmt: skip
    """out += weights · values, over the keys of these blocks that were written: others may hold
    anything, and int8 ones are multiplied by 0."""
    shape, rows = work.unit.shape, [work.out_at(r) for r in range(work.rows)]
    products, pairs = shape.products, shape.block.scaled
    block_steps = BLOCK_SIZE // products.depth

    def columns(first: Expr, width: int, vectors: int, part: Expr = 0, parts: int = 0) -> None:
        totals = [registers(vectors, width, products.sums) for _ in rows]
        for row, sums in zip(rows, totals, strict=True):
            for v, each in enumerate(sums):
                start = load(work.out, row + first + v * width, width)
                store(each, 0, constant(0, width, "int32") if pairs else start, width)
        with T.serial(*blocks) as b:
            if parts:
                fetch(work, chunk, b, part, parts)
            values = chunk.starts[b] + work.unit.values_start + first * products.depth
            values = settle(values, "int64")

            def step(j: Expr) -> None:
                at = T.bind(values + j * (shape.value_dim * products.depth))
                value = [
                    products.load(work.unit.given.v_cache, at + v * width * products.depth, width)
                    for v in range(vectors)
                ]
                for r, sums in enumerate(totals):
                    weight = products.spread(weights.load(r, b * block_steps + j, 1), width)
                    for v, each in enumerate(sums):
                        total = products.add(load(each, 0, width), weight, value[v], width)
                        store(each, 0, total, width)

            steps = block_steps // products.unroll if pairs else _written(chunk, b)
            with T.serial(0, steps) as i:
                for number in range(products.unroll):
                    step(T.bind(i * products.unroll + number))
        for r, (row, sums) in enumerate(zip(rows, totals, strict=True)):
            for v, each in enumerate(sums):
                at, total = row + first + v * width, load(each, 0, width)
                if pairs:
                    scale = spread(work.unit.weight_scales[work.state_at(r)], width)
                    before = load(work.out, at, width)
                    total = fma(products.real(total, width), scale, before, width)
                store(work.out, at, total, width)

    lanes, together = shape.lanes, max(2, shape.vectors)
    wide = shape.value_dim // (lanes * together)
    with T.serial(0, wide) as i:
        columns(i * (lanes * together), lanes, together, i, wide)
    done = wide * lanes * together
    vector_loop(shape.value_dim - done, lanes, lambda first, width: columns(done + first, width, 1))


def _written(chunk: Chunk, b: Expr) -> Expr:
    """How many keys of block b have been written."""
    return tirx.min(chunk.valid - b * BLOCK_SIZE, T.int32(BLOCK_SIZE))


def _finish(work: Pass) -> None:
    for r in range(work.rows):
        total = T.bind(work.unit.sums[work.state_at(r)])
        factor = tirx.Select(total > T.float32(0), T.float32(1) / total, T.float32(0))
        scale_output(work, r, settle(factor, "float32"))


def _leave(work: Pass) -> None:
    """For attention_combine."""
    unit, shape = work.unit, work.unit.shape
    start = T.bind(unit.tile.first * shape.partial_stride)
    for r in range(work.rows):
        at = T.bind(start + shape.partial_state(unit.segment, work.head_at(r)))
        T.buffer_store(unit.given.partial, unit.tops[work.state_at(r)], [at])
        T.buffer_store(unit.given.partial, unit.sums[work.state_at(r)], [at + 1])
