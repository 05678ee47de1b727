"""Attention of one tile: tokens of one sequence, the heads of one key head, all the keys they see.

Online softmax (Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022) over blocks of 16
keys. A pass holds up to eight query rows, so that a loaded key or value serves all of them; the
passes over a block follow each other while it is in the cache. The output row itself is the
accumulator. It is rescaled only when a block raises the row's maximum.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.append_kv import BLOCK_SIZE
from graphwright.backends.tvm.kernels.attention_shape import (
    AttentionShape,
    Operands,
    Tile,
    largest_divisor,
)
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.loops import (
    horizontal,
    load,
    quotient,
    remainder,
    settle,
    spread,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.vector import constant, fma, vector_type, vexp, vtanh

__all__ = ["compute"]

LOWEST = -1e30  # the maximum before the first key: finite, so that (masked - maximum) is no NaN


@dataclass(frozen=True)
class _Pass:
    """The query rows of one pass: row r is head r % pass_heads of token r / pass_heads."""

    shape: AttentionShape
    given: Operands
    q: Expr  # offset of the first row
    out: Expr
    head: Expr
    position: Expr
    tokens: int

    @property
    def rows(self) -> int:
        return self.tokens * self.shape.pass_heads

    def q_at(self, r: Expr) -> Expr:
        token, head = self._split(r)
        return self.q + (token * self.shape.q_stride + head * self.shape.dim)

    def out_at(self, r: Expr) -> Expr:
        token, head = self._split(r)
        return self.out + (token * self.shape.heads + head) * self.shape.value_dim

    def head_at(self, r: Expr) -> Expr:
        return self.head + self._split(r)[1]

    def position_at(self, r: Expr) -> Expr:
        return self.position + self._split(r)[0]

    def _split(self, r: Expr) -> tuple[Expr, Expr]:
        heads = self.shape.pass_heads
        if isinstance(r, int):
            return divmod(r, heads)
        return quotient(r, heads), remainder(r, heads)


@dataclass(frozen=True)
class _Softmax:
    """Running maximum and sum of every row of the item; `first` is the pass's first row."""

    tops: Expr
    sums: Expr
    first: Expr


def compute(shape: AttentionShape, given: Operands, tile: Tile, item: Expr) -> None:
    """Emits the whole computation of one item: `item` counts runs of heads."""
    first_head = T.bind(item * (shape.pass_heads * shape.head_passes))
    kv_head = T.bind(quotient(first_head, shape.group))
    tokens = min(tile.tokens, shape.pass_tokens)
    passes = tile.tokens // tokens * shape.head_passes
    rows = tokens * shape.pass_heads
    tops, sums = registers(2, passes * rows)

    def each_pass(body: Callable[[_Pass, _Softmax], None]) -> None:
        with T.serial(0, passes) as number:
            token = T.bind(quotient(number, shape.head_passes) * tokens)
            head = T.bind(first_head + remainder(number, shape.head_passes) * shape.pass_heads)
            q = T.bind((tile.first + token) * shape.q_stride + head * shape.dim)
            out = T.bind(((tile.first + token) * shape.heads + head) * shape.value_dim)
            position = T.bind(tile.position + token)
            state = _Softmax(tops, sums, T.bind(number * rows))
            body(_Pass(shape, given, q, out, head, position, tokens), state)

    each_pass(_begin)
    low = settle(tile.low_block(shape.mask), "int32")
    kept = settle(tile.first_blocks(shape.mask), "int32")
    (scores,) = registers(1, rows * BLOCK_SIZE)
    with T.serial(0, tile.count_blocks(shape)) as step:
        block = settle(tirx.Select(step < kept, step, low + step - kept), "int32")
        entry = tirx.Cast("int64", given.block_table[tile.table + block])
        start = T.bind(entry * T.int64(shape.block_stride))
        keys = T.bind(start + kv_head * (shape.dim * BLOCK_SIZE))
        values = T.bind(start + kv_head * (shape.value_dim * BLOCK_SIZE))
        first_key = T.bind(block * BLOCK_SIZE)
        written = tile.position + tile.tokens - first_key
        valid = T.bind(tirx.min(written, T.int32(BLOCK_SIZE)))

        def attend(work: _Pass, state: _Softmax) -> None:
            _score(work, keys, scores)
            with T.serial(0, rows) as r:
                _weigh(work, state, r, first_key, scores)
            _accumulate(work, values, valid, scores)

        each_pass(attend)
    each_pass(_finish)


def _begin(work: _Pass, state: _Softmax) -> None:
    sinks = work.given.sinks
    with T.serial(0, work.rows) as r:
        top = T.float32(LOWEST) if sinks is None else sinks[work.head_at(r)]
        T.buffer_store(state.tops, top, [state.first + r])
        T.buffer_store(state.sums, T.float32(0 if sinks is None else 1), [state.first + r])

        def clear(first: Expr, width: int) -> None:
            store(work.given.out, work.out_at(r) + first, constant(0.0, width), width)

        vector_loop(work.shape.value_dim, work.shape.lanes, clear)


def _score(work: _Pass, keys: Expr, scores: Expr) -> None:
    """scores[r, :] = q · k * scale of each row with the 16 keys of a block."""
    shape, lanes, vectors = work.shape, work.shape.lanes, work.shape.vectors
    ways = largest_divisor(shape.dim, max(1, 8 // (work.rows * vectors)))
    sums = [registers(vectors, lanes) for _ in range(work.rows * ways)]
    for each in sums:
        for part in each:
            store(part, 0, constant(0.0, lanes), lanes)
    with T.serial(0, shape.dim // ways) as turn:
        for way in range(ways):
            d = turn * ways + way
            key = [
                T.bind(load(work.given.k_cache, keys + (d * BLOCK_SIZE + v * lanes), lanes))
                for v in range(vectors)
            ]
            for r in range(work.rows):
                query = T.bind(spread(work.given.q[work.q_at(r) + d], lanes))
                for v, part in enumerate(sums[r * ways + way]):
                    store(part, 0, fma(query, key[v], load(part, 0, lanes), lanes), lanes)
    for r in range(work.rows):
        for v in range(vectors):
            parts = [load(sums[r * ways + way][v], 0, lanes) for way in range(ways)]
            total = sum(parts[1:], parts[0]) * constant(shape.scale, lanes)
            store(scores, r * BLOCK_SIZE + v * lanes, total, lanes)


def _weigh(work: _Pass, state: _Softmax, r: Expr, first_key: Expr, scores: Expr) -> None:
    """Row r's scores become exp(score - maximum); a new maximum rescales its sum and its output."""
    lanes, row, base = work.shape.lanes, T.bind(state.first + r), T.bind(r * BLOCK_SIZE)
    masked = [
        T.bind(_masked(work, r, first_key + v, load(scores, base + v, lanes)))
        for v in range(0, BLOCK_SIZE, lanes)
    ]
    highest = functools.reduce(tirx.max, masked)
    block_top = T.bind(horizontal(highest, lanes, tirx.max))
    with T.If(block_top > state.tops[row]), T.Then():
        factor = settle(vexp(state.tops[row] - block_top, 1), "float32")
        T.buffer_store(state.tops, block_top, [row])
        T.buffer_store(state.sums, state.sums[row] * factor, [row])
        _scale_output(work, r, factor)
    weights = [T.bind(vexp(each - spread(state.tops[row], lanes), lanes)) for each in masked]
    for v, weight in enumerate(weights):
        store(scores, base + v * lanes, weight, lanes)
    total = horizontal(functools.reduce(operator.add, weights), lanes, operator.add)
    T.buffer_store(state.sums, state.sums[row] + total, [row])


def _masked(work: _Pass, r: Expr, first_key: Expr, score: Expr) -> Expr:
    """The score after softcap and slope; minus infinity where the mask hides the key."""
    shape, lanes, mask = work.shape, work.shape.lanes, work.shape.mask
    if shape.softcap:
        cap = constant(shape.softcap, lanes)
        score = vtanh(score * constant(1 / shape.softcap, lanes), lanes) * cap
    position = T.bind(work.position_at(r))
    key, query = T.bind(T.ramp(first_key, 1, lanes)), T.bind(spread(position, lanes))
    if work.given.slopes is not None:
        distance = tirx.Cast(vector_type("float32", lanes), key - query)
        score = score + spread(work.given.slopes[work.head_at(r)], lanes) * distance
    visible = key <= query
    if mask.window is not None:
        near = query - key < constant(mask.window, lanes, "int32")
        if mask.first:
            near = near | (key < constant(mask.first, lanes, "int32"))
        visible = visible & near
    if mask.chunk is not None:
        visible = visible & (key >= spread(quotient(position, mask.chunk) * mask.chunk, lanes))
    return tirx.Select(visible, score, constant(-math.inf, lanes))


def _scale_output(work: _Pass, r: Expr, factor: Expr) -> None:
    out, start = work.given.out, T.bind(work.out_at(r))

    def scale(first: Expr, width: int) -> None:
        store(out, start + first, load(out, start + first, width) * spread(factor, width), width)

    vector_loop(work.shape.value_dim, work.shape.lanes, scale)


def _accumulate(work: _Pass, values: Expr, valid: Expr, weights: Expr) -> None:
    """out += weights · values, over the keys that were written: others may hold anything."""
    out, rows = work.given.out, range(work.rows)

    def columns(first: Expr, width: int) -> None:
        sums = registers(work.rows, width)
        for r in rows:
            store(sums[r], 0, load(out, work.out_at(r) + first, width), width)
        with T.serial(0, valid) as j:
            at = values + (j * work.shape.value_dim + first)
            value = T.bind(load(work.given.v_cache, at, width))
            for r in rows:
                weight = spread(weights[r * BLOCK_SIZE + j], width)
                store(sums[r], 0, fma(weight, value, load(sums[r], 0, width), width), width)
        for r in rows:
            store(out, work.out_at(r) + first, load(sums[r], 0, width), width)

    vector_loop(work.shape.value_dim, work.shape.lanes, columns)


def _finish(work: _Pass, state: _Softmax) -> None:
    with T.serial(0, work.rows) as r:
        total = T.bind(state.sums[state.first + r])
        factor = tirx.Select(total > T.float32(0), T.float32(1) / total, T.float32(0))
        _scale_output(work, r, T.bind(factor))
