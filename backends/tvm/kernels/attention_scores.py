"""Scores of a pass against a chunk of keys, and the weights that softmax makes of them."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.attention_fetch import lines_of
from graphwright.backends.tvm.kernels.attention_shape import CHUNK, largest_divisor
from graphwright.backends.tvm.kernels.attention_work import Chunk, Pass
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, load_values
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
    fma,
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
    work: Pass, chunk: Chunk, b: Expr, scores: Scores, fetch: Callable[[Expr, int], None]
) -> None:
    """Row r of the scores = q · k of each row with the keys of block b of the chunk, scaled for
    powers of two. fetch(part, parts) is emitted `parts` times in between."""
    shape, given = work.unit.shape, work.unit.given
    lanes, vectors, dim = shape.lanes, shape.vectors, shape.dim
    rows = [work.q_at(r) for r in range(work.rows)]
    ways = largest_divisor(dim, max(1, 8 // (work.rows * vectors)))
    turns = dim // ways
    together = largest_divisor(
        turns, max(1, work.total * dim // (lines_of(dim, shape.block) * ways))
    )
    keys = settle(chunk.starts[b] + work.unit.keys_start, "int64")
    sums = [registers(vectors, lanes) for _ in range(work.rows * ways)]
    for each in sums:
        for part in each:
            store(part, 0, constant(0.0, lanes), lanes)

    def turn(number: Expr) -> None:
        for way in range(ways):
            d = T.bind(number * ways + way)
            first = keys + d * BLOCK_SIZE
            key = [
                T.bind(load_values(given.k_cache, first + v * lanes, lanes, shape.block.dtype))
                for v in range(vectors)
            ]
            for r, row in enumerate(rows):
                query = T.bind(spread(given.q[row + d], lanes))
                for v, part in enumerate(sums[r * ways + way]):
                    store(part, 0, fma(query, key[v], load(part, 0, lanes), lanes), lanes)

    with T.serial(0, turns // together) as i:
        fetch(i, turns // together)
        with T.serial(0, together) as j:
            turn(T.bind(i * together + j))
    for v in range(vectors):
        factor = constant(shape.scale * (1 if shape.softcap else LOG2_E), lanes)
        if shape.block.scaled:
            at = settle(chunk.scales[b] + work.unit.scales_start, "int64") + v * lanes
            factor = T.bind(load(given.k_scale, at, lanes) * factor)
        for r in range(work.rows):
            parts = [load(sums[r * ways + way][v], 0, lanes) for way in range(ways)]
            total = sum(parts[1:], parts[0]) * factor
            scores.store(r, b * BLOCK_SIZE + v * lanes, total, lanes)


def weigh(work: Pass, chunk: Chunk, scores: Scores) -> None:
    """Scores become 2 ** (score - maximum), in int8 times the value's scale; a new maximum rescales
    the row's sum and its output."""
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

    def exponential(at: Expr, b: Expr, v: int) -> None:
        weight = T.bind(vexp2_of_negative(scores.load(r, at, lanes) - top, lanes))
        store(total, 0, load(total, 0, lanes) + weight, lanes)
        if unit.shape.block.scaled:
            start = settle(chunk.scales[b] + work.unit.scales_start, "int64") + v * lanes
            weight = weight * load(unit.given.v_scale, start, lanes)
        scores.store(r, at, weight, lanes)

    _each_vector(work, chunk, exponential)
    found = horizontal(load(total, 0, lanes), lanes, operator.add)
    T.buffer_store(unit.sums, unit.sums[row] + found, [row])


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
