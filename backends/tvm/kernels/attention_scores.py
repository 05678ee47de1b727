"""Scores of a pass against a chunk of keys, and the weights that softmax makes of them."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.attention_fetch import lines_of
from graphwright.backends.tvm.kernels.attention_integers import (
    Largest,
    Queries,
    quantize_weights,
)
from graphwright.backends.tvm.kernels.attention_shape import CHUNK, largest_divisor
from graphwright.backends.tvm.kernels.attention_work import Chunk, Pass
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE
from graphwright.backends.tvm.kernels.loops import (
    horizontal,
    load,
    quotient,
    settle,
    spread,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.vector import (
    constant,
    vector_type,
    vexp2_of_negative,
    vtanh,
)

__all__ = ["LOG2_E", "Scores", "scale_output", "score", "weigh"]

LOG2_E = math.log2(math.e)  # scores are multiplied by it, so that powers of two are what is needed
CHUNK_KEYS = CHUNK * BLOCK_SIZE


@dataclass(frozen=True)
class Scores:
    """The scores, later weights, of the rows of a pass with a chunk: row r starts at `starts[r]` of
    `buffers[r]`."""

    buffers: Sequence[Expr]
    starts: Sequence[Expr]

    @staticmethod
    def in_registers(work: Pass) -> Scores:
        """Memory of the function, for as long as the pass is computed."""
        return Scores(registers(work.rows, CHUNK_KEYS), [0] * work.rows)

    @staticmethod
    def in_partial(work: Pass) -> Scores:
        """Memory of each row of a segment, next to its partial results."""
        return Scores([work.unit.given.partial] * work.rows,
                      [work.scores_at(r) for r in range(work.rows)])  # fmt: skip

    def load(self, r: int, at: Expr, lanes: int) -> Expr:
        return load(self.buffers[r], self.starts[r] + at, lanes)

    def store(self, r: int, at: Expr, value: Expr, lanes: int) -> None:
        store(self.buffers[r], self.starts[r] + at, value, lanes)


def score(
    work: Pass, chunk: Chunk, b: Expr, queries: Queries, scores: Scores,
    fetch: Callable[[Expr, int], None],
) -> None:  # fmt: skip
    """Row r of the scores = q · k of each row with the keys of block b of the chunk, scaled for
    powers of two. fetch(part, parts) is emitted `parts` times in between."""
    shape, products = work.unit.shape, work.unit.shape.products
    lanes, vectors = shape.lanes, shape.vectors
    few = max(1, 8 // (work.rows * vectors))  # sums of a row, so that no addition waits for another
    sums = [
        [registers(vectors, lanes, products.sums) for _ in range(few if products.waits else 1)]
        for _ in range(work.rows)
    ]
    for part in itertools.chain.from_iterable(itertools.chain.from_iterable(sums)):
        store(part, 0, constant(0, lanes, products.sums), lanes)
    keys = settle(chunk.starts[b] + work.unit.keys_start, "int64")
    pieces = _Piece.of(work, queries, max(products.unroll, few))
    parts = sum(piece.parts for piece in pieces)

    def step(piece: _Piece, number: Expr, way: int) -> None:
        first = keys + (piece.first + number) * (BLOCK_SIZE * products.depth)
        key = [
            products.load(work.unit.given.k_cache, first + v * lanes * products.depth, lanes)
            for v in range(vectors)
        ]
        for (buffer, start), ways in zip(piece.rows, sums, strict=True):
            query = products.spread(buffer[start + number], lanes)
            for v, part in enumerate(ways[way % len(ways)]):
                store(part, 0, products.add(load(part, 0, lanes), query, key[v], lanes), lanes)

    before = 0
    for piece in pieces:
        with T.serial(0, piece.parts) as i:
            fetch(before + i, parts)
            with T.serial(0, piece.turns) as j:
                turn = T.bind((i * piece.turns + j) * piece.ways)
                for way in range(piece.ways):
                    step(piece, T.bind(turn + way), way)
        before += piece.parts
    for v in range(vectors):
        factor = constant(shape.scale * (1 if shape.softcap else LOG2_E), lanes)
        if shape.block.scaled:
            at = settle(chunk.scales[b] + work.unit.scales_start, "int64") + v * lanes
            factor = T.bind(load(work.unit.given.k_scale, at, lanes) * factor)
        for r, ways in enumerate(sums):
            found = [load(way[v], 0, lanes) for way in ways]
            total = products.real(sum(found[1:], found[0]), lanes) * factor
            if shape.block.scaled:
                total = total * spread(work.unit.q_scales[work.state_at(r)], lanes)
            scores.store(r, b * BLOCK_SIZE + v * lanes, total, lanes)


@dataclass(frozen=True)
class _Piece:
    """Steps from `first` on, whose operands lie together: `parts` times `turns` times `ways`."""

    first: int
    rows: Sequence[tuple[Expr, Expr]]
    parts: int
    turns: int
    ways: int

    @staticmethod
    def of(work: Pass, queries: Queries, ways: int) -> list[_Piece]:
        """All steps; in each piece as many parts as there are lines to ask for, or fewer."""
        shape, found = work.unit.shape, []
        lines = lines_of(shape.dim, shape.block)
        for number, rows in enumerate(zip(*queries.pieces, strict=True)):
            first = number * queries.steps
            steps = min(queries.steps, shape.steps - first)
            together = largest_divisor(steps, ways)
            turns = largest_divisor(
                steps // together, max(1, work.total * shape.steps // (lines * together))
            )
            found.append(_Piece(first, rows, steps // together // turns, turns, together))
        return found


def weigh(work: Pass, chunk: Chunk, scores: Scores) -> None:
    """Scores become 2 ** (score - maximum), in int8 times the value's scale and as pairs of
    integers; a new maximum rescales the row's sum and its output."""
    unit, lanes, rows = work.unit, work.unit.shape.lanes, range(work.rows)
    _bend(work, chunk, scores)
    with T.If(tirx.Not(chunk.visible_to_all(unit))), T.Then():
        _hide(work, chunk, scores)

    highest = registers(work.rows, lanes)
    for r in rows:
        store(highest[r], 0, constant(-math.inf, lanes), lanes)

    def raise_tops(at: Expr, *_: Expr) -> None:
        for r in rows:
            found = tirx.max(load(highest[r], 0, lanes), scores.load(r, at, lanes))
            store(highest[r], 0, found, lanes)

    _each_vector(work, chunk, raise_tops)
    for r in rows:
        row = T.bind(work.state_at(r))
        top = settle(horizontal(load(highest[r], 0, lanes), lanes, tirx.max), "float32")
        with T.If(top > unit.tops[row]), T.Then():
            factor = settle(vexp2_of_negative(unit.tops[row] - top, 1), "float32")
            T.buffer_store(unit.tops, top, [row])
            T.buffer_store(unit.sums, unit.sums[row] * factor, [row])
            scale_output(work, r, factor)

    for r in rows:  # one after the other: the constants then stay in registers
        _exponentiate(work, chunk, r, scores)


def _exponentiate(work: Pass, chunk: Chunk, r: int, scores: Scores) -> None:
    unit, lanes, row = work.unit, work.unit.shape.lanes, T.bind(work.state_at(r))
    top = T.bind(spread(unit.tops[row], lanes))
    (total,) = registers(1, lanes)
    store(total, 0, constant(0.0, lanes), lanes)
    largest = Largest(lanes) if unit.shape.block.scaled else None

    def exponential(at: Expr, b: Expr, v: int) -> None:
        weight = T.bind(vexp2_of_negative(scores.load(r, at, lanes) - top, lanes))
        store(total, 0, load(total, 0, lanes) + weight, lanes)
        if largest is not None:
            start = settle(chunk.scales[b] + work.unit.scales_start, "int64") + v * lanes
            scale, zero = load(unit.given.v_scale, start, lanes), constant(0.0, lanes)
            # of a value that nobody has written, the scale may be anything
            (product,) = registers(1, lanes)
            store(product, 0, tirx.Select(weight == zero, zero, weight * scale), lanes)
            weight = load(product, 0, lanes)
            largest.add(weight)
        scores.store(r, at, weight, lanes)

    _each_vector(work, chunk, exponential)
    found = horizontal(load(total, 0, lanes), lanes, operator.add)
    T.buffer_store(unit.sums, unit.sums[row] + found, [row])
    if largest is not None:
        quantize_weights(work, chunk, r, scores.buffers[r], scores.starts[r], largest.get())


def scale_output(work: Pass, r: int, factor: Expr) -> None:
    """Row r of the result times `factor`."""
    out, start = work.out, work.out_at(r)

    def scale(first: Expr, width: int) -> None:
        store(out, start + first, load(out, start + first, width) * spread(factor, width), width)

    vector_loop(work.unit.shape.value_dim, work.unit.shape.lanes, scale)


def _each_vector(work: Pass, chunk: Chunk, body: Callable[[Expr, Expr, int], None]) -> None:
    """Emits body(place in a row of scores, block, vector of the block) for the chunk's keys."""
    shape = work.unit.shape
    with T.serial(0, chunk.count) as b:
        for v in range(shape.vectors):
            body(T.bind(b * BLOCK_SIZE + v * shape.lanes), b, v)


def _bend(work: Pass, chunk: Chunk, scores: Scores) -> None:
    """Softcap and slopes."""
    shape, lanes, slopes = work.unit.shape, work.unit.shape.lanes, work.unit.given.slopes
    if not shape.softcap and slopes is None:
        return

    def bend(at: Expr, b: Expr, v: int) -> None:
        for r in range(work.rows):
            value = scores.load(r, at, lanes)
            if shape.softcap:
                cap = constant(shape.softcap * LOG2_E, lanes)
                value = vtanh(value * constant(1 / shape.softcap, lanes), lanes) * cap
            if slopes is not None:
                keys = T.ramp(chunk.first_keys[b] + v * lanes, 1, lanes)
                distance = keys - spread(work.position_at(r), lanes)
                slope = spread(slopes[work.head_at(r)] * T.float32(LOG2_E), lanes)
                value = value + slope * tirx.Cast(vector_type("float32", lanes), distance)
            scores.store(r, at, value, lanes)

    _each_vector(work, chunk, bend)


def _hide(work: Pass, chunk: Chunk, scores: Scores) -> None:
    """Minus infinity for the keys that the mask hides, and for those that nobody has written."""
    lanes, mask = work.unit.shape.lanes, work.unit.shape.mask
    positions = [settle(work.position_at(r), "int32") for r in range(work.rows)]

    def hide(at: Expr, b: Expr, v: int) -> None:
        key = T.bind(T.ramp(chunk.first_keys[b] + v * lanes, 1, lanes))
        for r, position in enumerate(positions):
            query = T.bind(spread(position, lanes))
            visible = [key <= query]
            if mask.window is not None:
                near = query - key < constant(mask.window, lanes, "int32")
                if mask.first:
                    near = near | (key < constant(mask.first, lanes, "int32"))
                visible.append(near)
            if mask.chunk is not None:
                start = quotient(position, mask.chunk) * mask.chunk
                visible.append(key >= spread(start, lanes))
            seen = functools.reduce(operator.and_, visible)
            value = tirx.Select(seen, scores.load(r, at, lanes), constant(-math.inf, lanes))
            scores.store(r, at, value, lanes)

    _each_vector(work, chunk, hide)
