"""Which cached keys each token attends to: index scores, and the best of them.

The scores of a block of keys are a row of sums in registers, as in attention (attention_scores.py):
index keys lie as keys do. One pass over them, no softmax; what is kept is `Candidates`. Where the
tokens are few, the keys of each are cut into segments, whose candidates `choose_combine` puts
together. A token that sees no more keys than it may choose chooses all, and has no scores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.append_kv import advance, block_name
from graphwright.backends.tvm.kernels.attention_shape import SEGMENT_BLOCKS, Tile, largest_divisor
from graphwright.backends.tvm.kernels.candidates import Candidates, ordered
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, registers
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, KvBlock, load_values
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    quotient,
    settle,
    spread,
    store,
)
from graphwright.backends.tvm.kernels.vector import constant, fma, vrelu
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.masks import Mask
from graphwright.ir.memory import ATTENTION_SEGMENTS, candidate_words

__all__ = ["ChoiceShape", "choose_combine", "choose_keys"]

_ROWS = {16: 8, 8: 4}  # heads whose sums are in registers at once, by lanes


@dataclass(frozen=True)
class ChoiceShape:
    """`heads` index queries a token, against the keys of `block` (which has no values); `count` are
    chosen of what `mask` shows."""

    heads: int
    block: KvBlock
    count: int
    mask: Mask
    lanes: int

    @property
    def vectors(self) -> int:
        """Vectors that hold one value for each key of a block."""
        return BLOCK_SIZE // self.lanes

    @property
    def rows(self) -> int:
        """Heads of a pass: they share a key head."""
        return largest_divisor(self.heads // self.block.kv_heads, _ROWS.get(self.lanes, 4))

    def chooses(self, tile: Tile) -> Expr:
        """May the token see more keys than it chooses?"""
        return tile.position >= self.count

    def segments(self, tile: Tile) -> Expr:
        """How many segments its keys are cut into."""
        most = quotient(tile.count_blocks(self.mask) + (SEGMENT_BLOCKS - 1), SEGMENT_BLOCKS)
        return tirx.min(most, T.int32(ATTENTION_SEGMENTS))


def choose_keys(
    heads: int, block: KvBlock, count: int, *, q_stride: int, w_stride: int, mask: Mask,
    split: bool, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """Pointers: batch, q, weights, cache, positions (int64), query_start, block_table, and out
    [T, count] int32, or where `split` partial, as choose_combine takes it.

    As gw.cached_choose_keys, after the step's keys are in the cache.
    """
    shape = ChoiceShape(heads, block, count, mask, cpu.lanes)

    def body(
        thread: Expr, threads: Expr, rows: Expr, batch: Expr, q: Expr, weights: Expr, cache: Expr,
        positions: Expr, query_start: Expr, block_table: Expr, out: Expr,
    ) -> None:  # fmt: skip
        found = Candidates.on_stack(count, cpu.lanes)
        (scores,) = registers(1, BLOCK_SIZE)

        def offer_block(tile: Tile, number: Expr) -> None:
            entry = settle(tirx.Cast("int64", block_table[tile.table + number]), "int64")
            given = _Row(q, tile.first * q_stride, weights, tile.first * w_stride)
            _score(shape, given, cache, entry * T.int64(block.stride), scores)
            with T.serial(0, BLOCK_SIZE) as slot:
                key = T.bind(number * BLOCK_SIZE + slot)
                with T.If(_visible(mask, tile.position, key)), T.Then():
                    found.offer(settle(ordered(scores[slot]), "uint32"), key)

        def part(tile: Tile, segment: Expr, segments: Expr) -> None:
            blocks = settle(tile.count_blocks(mask), "int32")
            begin, end = (
                settle(quotient(blocks * each, segments), "int32")
                for each in (segment, segment + 1)
            )
            found.begin()
            _each_block(tile, mask, begin, end, lambda number: offer_block(tile, number))
            found.finish()

        def token(tile: Tile, segment: Expr) -> None:
            if not split:
                with T.If(shape.chooses(tile)):
                    with T.Then():
                        part(tile, T.int32(0), T.int32(1))
                        _write(found, out, tile.first * count)
                    with T.Else():
                        _write_all(shape, tile, out)
                return
            segments = settle(shape.segments(tile), "int32")
            with T.If(tirx.all(shape.chooses(tile), segment < segments)), T.Then():
                part(tile, segment, segments)
                words = candidate_words(count)
                _leave(found, out, (tile.first * ATTENTION_SEGMENTS + segment) * words)

        parts = ATTENTION_SEGMENTS if split else 1
        _each_share(batch, positions, query_start, rows * parts, parts, thread, threads, token)

    name = kernel_name(
        "choose_keys", cpu, h=heads, block=block_name(block), n=count, qs=q_stride, ws=w_stride,
        mask=mask, split=split,
    )  # fmt: skip
    pointers = [("batch", "int32"), ("q", "float32"), ("weights", "float32"), block.pointers[0]]
    pointers += [("positions", "int64"), ("query_start", "int32"), ("block_table", "int32")]
    return define(name, [*pointers, ("out", "int32")], body)


def choose_combine(heads: int, block: KvBlock, count: int, *, mask: Mask, cpu: Cpu) -> Kernel:
    """Pointers: batch, positions, query_start, partial, out [T, count] int32.

    The best of the candidates that choose_keys left of each token's segments, and all keys of the
    tokens that see no more than `count`.
    """
    shape = ChoiceShape(heads, block, count, mask, cpu.lanes)
    words = candidate_words(count)

    def body(
        thread: Expr, threads: Expr, rows: Expr, batch: Expr, positions: Expr, query_start: Expr,
        partial: Expr, out: Expr,
    ) -> None:  # fmt: skip
        found = Candidates.on_stack(count, cpu.lanes)

        def offer_segment(start: Expr) -> None:
            with T.serial(0, partial[start]) as i:
                key = tirx.reinterpret("uint32", partial[start + 1 + i])
                found.offer(settle(key, "uint32"), partial[start + 1 + count + i])

        def token(tile: Tile, _: Expr) -> None:
            with T.If(shape.chooses(tile)):
                with T.Then():
                    found.begin()
                    with T.serial(0, settle(shape.segments(tile), "int32")) as segment:
                        at = (tile.first * ATTENTION_SEGMENTS + segment) * words
                        offer_segment(settle(at, "int32"))
                    found.finish()
                    _write(found, out, tile.first * count)
                with T.Else():
                    _write_all(shape, tile, out)

        _each_share(batch, positions, query_start, rows, 1, thread, threads, token)

    name = kernel_name("choose_combine", cpu, n=count, mask=mask)
    pointers = [("batch", "int32"), ("positions", "int64"), ("query_start", "int32")]
    return define(name, [*pointers, ("partial", "int32"), ("out", "int32")], body)


@dataclass(frozen=True)
class _Row:
    """A token's index queries and the weights of its heads, from `q_at` and `w_at` on."""

    q: Expr
    q_at: Expr
    weights: Expr
    w_at: Expr


def _score(shape: ChoiceShape, row: _Row, cache: Expr, start: Expr, scores: Expr) -> None:
    """scores[16] of the keys of the block that starts at `start`."""
    block, lanes, vectors = shape.block, shape.lanes, range(shape.vectors)
    for v in vectors:
        store(scores, v * lanes, constant(0.0, lanes), lanes)
    with T.serial(0, shape.heads // shape.rows) as turn:
        head = T.bind(turn * shape.rows)
        kv_head = quotient(head, shape.heads // block.kv_heads)
        keys = settle(start + tirx.Cast("int64", kv_head * block.key_elements), "int64")
        q_at = settle(row.q_at + head * block.dim, "int32")
        sums = [registers(shape.vectors, lanes) for _ in range(shape.rows)]
        for each in (part for parts in sums for part in parts):
            store(each, 0, constant(0.0, lanes), lanes)
        with T.serial(0, block.dim) as d:
            first = T.bind(keys + d * BLOCK_SIZE)
            key = [
                T.bind(load_values(cache, first + v * lanes, lanes, block.dtype)) for v in vectors
            ]
            for r, parts in enumerate(sums):
                query = T.bind(spread(row.q[q_at + r * block.dim + d], lanes))
                for part, value in zip(parts, key, strict=True):
                    store(part, 0, fma(query, value, load(part, 0, lanes), lanes), lanes)
        for r, parts in enumerate(sums):
            weight = T.bind(spread(row.weights[row.w_at + head + r], lanes))
            for v, part in enumerate(parts):
                total = load(scores, v * lanes, lanes)
                positive = vrelu(load(part, 0, lanes), lanes)
                store(scores, v * lanes, fma(weight, positive, total, lanes), lanes)


def _each_share(
    batch: Expr, positions: Expr, query_start: Expr, units: Expr, parts: int, thread: Expr,
    threads: Expr, body: Callable[[Tile, Expr], None],
) -> None:  # fmt: skip
    """Emits body(token, part of it) for every `threads`-th of `units` parts: later tokens and parts
    have more keys."""
    (sequence,) = registers(1, 1, "int32")
    T.buffer_store(sequence, T.int32(0), [0])
    with T.serial(0, quotient(units - thread + threads - 1, threads)) as turn:
        unit = settle(thread + turn * threads, "int32")
        token = settle(quotient(unit, parts), "int32")
        advance(sequence, token, batch, query_start)
        position = settle(tirx.Cast("int32", positions[token]), "int32")
        table = settle(sequence[0] * batch[2], "int32")
        body(Tile(token, 1, position, table), settle(unit - token * parts, "int32"))


def _each_block(
    tile: Tile, mask: Mask, begin: Expr, end: Expr, body: Callable[[Expr], None]
) -> None:
    """Emits body(number of a block) for those that the token sees, `begin` to `end` of them."""
    kept, low = (settle(each, "int32") for each in (tile.first_blocks(mask), tile.low_block(mask)))
    with T.serial(begin, end) as step:
        body(settle(tirx.Select(step < kept, step, low + step - kept), "int32"))


def _visible(mask: Mask, position: Expr, key: Expr) -> Expr:
    conditions = [key <= position]
    if mask.window is not None:
        near = position - key < mask.window
        conditions.append(tirx.any(near, key < mask.first) if mask.first else near)
    if mask.chunk is not None:
        conditions.append(key >= quotient(position, mask.chunk) * mask.chunk)
    return functools.reduce(tirx.all, conditions)


def _write(found: Candidates, out: Expr, start: Expr) -> None:
    """out[start : start + count] = the positions found, and -1 behind them."""
    with T.serial(0, found.taken[0]) as i:
        T.buffer_store(out, found.positions[i], [start + i])
    with T.serial(found.taken[0], found.wanted) as i:
        T.buffer_store(out, T.int32(-1), [start + i])


def _write_all(shape: ChoiceShape, tile: Tile, out: Expr) -> None:
    """All positions that the token sees, and -1 behind them."""
    (taken,) = registers(1, 1, "int32")
    T.buffer_store(taken, T.int32(0), [0])
    start = T.bind(tile.first * shape.count)
    with T.serial(0, tile.position + 1) as key:
        seen = _visible(shape.mask, tile.position, key)
        with T.If(seen), T.Then():
            T.buffer_store(out, key, [start + taken[0]])
            T.buffer_store(taken, taken[0] + 1, [0])
    with T.serial(taken[0], shape.count) as i:
        T.buffer_store(out, T.int32(-1), [start + i])


def _leave(found: Candidates, partial: Expr, start: Expr) -> None:
    """For choose_combine: how many, their keys, their positions."""
    at = settle(start, "int32")
    T.buffer_store(partial, found.taken[0], [at])
    with T.serial(0, found.taken[0]) as i:
        T.buffer_store(partial, tirx.reinterpret("int32", found.keys[i]), [at + 1 + i])
        T.buffer_store(partial, found.positions[i], [at + 1 + found.wanted + i])
