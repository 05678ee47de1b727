"""Attention of each token to the cached keys that it has chosen: as many at most as are chosen,
however many there are.

A unit is a token and a few of its heads that share a key head. It looks up where its keys lie, then
computes all scores, the softmax, and the sum of the values, key by key in the order of positions.
Tokens follow each other, then heads: neighbours choose many of the same keys.
Keys lie row by row (KvBlock.by_row), so that a key that is read is one run of memory.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.append_kv import advance, block_name
from graphwright.backends.tvm.kernels.attention_scores import LOG2_E
from graphwright.backends.tvm.kernels.attention_shape import largest_divisor
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition, registers
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, KvBlock, load_values
from graphwright.backends.tvm.kernels.loops import (
    horizontal,
    kernel_name,
    load,
    quotient,
    remainder,
    row_sum,
    settle,
    spread,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.stage import stage
from graphwright.backends.tvm.kernels.vector import constant, fma, vexp2_of_negative, vtanh
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError

__all__ = ["MOST_CHOSEN", "attention_chosen"]

MOST_CHOSEN = 1 << 15  # keys of which the scores and the places are on a thread's stack
_SCORES = 1 << 14  # of a unit's rows
_VECTORS = {16: 16, 8: 8}  # of values that are summed at once, by lanes


def attention_chosen(
    heads: int, block: KvBlock, count: int, *, q_stride: int, scale: float, softcap: float,
    slopes: bool, sinks: bool, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """Pointers: batch, q, k_cache, v_cache, (k_scale, v_scale), positions, query_start,
    block_table, chosen [T, count] int32, (slopes [heads]), (sinks [heads]), out
    [T, heads * value_dim].

    As gw.cached_attention with `chosen`, after append_kv. All chosen keys must be visible.
    """
    if heads % block.kv_heads:
        raise BackendError(
            f"attention: {heads} heads cannot share {block.kv_heads} key heads evenly."
        )
    pointers = [("batch", "int32"), ("q", "float32"), *block.pointers, ("positions", "int64")]
    pointers += [("query_start", "int32"), ("block_table", "int32"), ("chosen", "int32")]
    pointers += [("slopes", "float32")] * slopes + [("sinks", "float32")] * sinks
    pointers += [("out", "float32")]
    group = heads // block.kv_heads
    each = largest_divisor(group, max(1, min(4, _SCORES // count)))

    def body(thread: Expr, threads: Expr, rows: Expr, *buffers: Expr) -> None:
        given = {name: each for (name, _), each in zip(pointers, buffers, strict=True)}
        stride = -(-count // cpu.lanes) * cpu.lanes
        memory = stage(each * stride), stage(count, "int32")
        shape = _Shape(heads, block, count, scale, softcap, cpu.lanes, stride, given, *memory)
        items = heads // each
        first, last = partition(rows * items, thread, threads)
        (sequence,) = registers(1, 1, "int32")
        T.buffer_store(sequence, T.int32(0), [0])
        with T.serial(first, last) as number:
            head = settle(quotient(number, rows) * each, "int32")
            token = settle(remainder(number, rows), "int32")
            with T.If(token == 0), T.Then():
                T.buffer_store(sequence, T.int32(0), [0])
            advance(sequence, token, given["batch"], given["query_start"])
            taken = _look_up(shape, token, sequence[0] * given["batch"][2])
            unit = _Unit(shape, token, head, settle(quotient(head, group), "int32"), taken, each)
            q_at = settle(token * q_stride + head * block.dim, "int32")
            _score(unit, q_at)
            factors = [_weigh(unit, r) for r in range(each)]
            _add_values(unit, factors)

    name = kernel_name(
        "attention_chosen", cpu, h=heads, block=block_name(block), n=count, qs=q_stride, by=scale,
        cap=softcap, slopes=slopes, sinks=sinks,
    )  # fmt: skip
    return define(name, pointers, body)


@dataclass(frozen=True)
class _Shape:
    """The static parameters, the operands by name, and room for the scores of a unit's rows,
    `stride` apart, and for the places of its keys: block * 16 + slot."""

    heads: int
    block: KvBlock
    count: int
    scale: float
    softcap: float
    lanes: int
    stride: int
    given: dict[str, Expr]
    scores: Expr
    places: Expr


@dataclass(frozen=True)
class _Unit:
    """`rows` heads of a token from `head` on, with the key head `kv_head`, and `taken` keys."""

    shape: _Shape
    token: Expr
    head: Expr
    kv_head: Expr
    taken: Expr
    rows: int

    def key_row(self, place: Expr, part: int, width: int) -> Expr:
        """Where a row of `width` of the key at `place` starts; `part` elements of a block are those
        of one head."""
        start = tirx.Cast("int64", quotient(place, BLOCK_SIZE)) * self.shape.block.stride
        within = self.kv_head * part + remainder(place, BLOCK_SIZE) * width
        return settle(start + tirx.Cast("int64", within), "int64")

    def scale_of(self, name: str, place: Expr) -> Expr:
        """The scale of the key or value at `place`."""
        start = tirx.Cast("int64", quotient(place, BLOCK_SIZE)) * self.shape.block.scale_stride
        within = self.kv_head * BLOCK_SIZE + remainder(place, BLOCK_SIZE)
        return self.shape.given[name][start + tirx.Cast("int64", within)]


def _look_up(shape: _Shape, token: Expr, table: Expr) -> Expr:
    """How many keys the token has chosen; where they are is in `places`."""
    (taken,) = registers(1, 1, "int32")
    T.buffer_store(taken, T.int32(0), [0])
    start = settle(token * shape.count, "int32")
    row = settle(table, "int32")
    chosen, blocks = shape.given["chosen"], shape.given["block_table"]
    with T.serial(0, shape.count) as i:
        position = settle(chosen[start + i], "int32")
        with T.If(position >= 0), T.Then():
            block = blocks[row + quotient(position, BLOCK_SIZE)]
            place = block * BLOCK_SIZE + remainder(position, BLOCK_SIZE)
            T.buffer_store(shape.places, place, [i])
            T.buffer_store(taken, i + 1, [0])
    return settle(taken[0], "int32")


def _score(unit: _Unit, q_at: Expr) -> None:
    """The scores of all rows, for powers of two; minus infinity up to a whole vector."""
    shape, block, given = unit.shape, unit.shape.block, unit.shape.given
    position = settle(tirx.Cast("int32", given["positions"][unit.token]), "int32")
    with T.serial(0, unit.taken) as i:
        place = settle(shape.places[i], "int32")
        at = unit.key_row(place, block.key_elements, block.dim)
        factor = T.float32(shape.scale * (1 if shape.softcap else LOG2_E))
        if block.scaled:
            factor = settle(unit.scale_of("k_scale", place) * factor, "float32")
        for r in range(unit.rows):

            def product(first: Expr, width: int, r: int = r) -> Expr:
                key = load_values(given["k_cache"], at + first, width, block.dtype)
                return load(given["q"], q_at + r * block.dim + first, width) * key

            value = row_sum(block.dim, shape.lanes, product) * factor
            if shape.softcap:
                value = vtanh(value * T.float32(1 / shape.softcap), 1)
                value = value * T.float32(shape.softcap * LOG2_E)
            if "slopes" in given:
                key = given["chosen"][unit.token * shape.count + i]
                slope = given["slopes"][unit.head + r] * T.float32(LOG2_E)
                value = value + slope * tirx.Cast("float32", key - position)
            T.buffer_store(shape.scores, value, [r * shape.stride + i])
    for r in range(unit.rows):
        end = quotient(unit.taken + (shape.lanes - 1), shape.lanes) * shape.lanes
        with T.serial(unit.taken, end) as i:
            T.buffer_store(shape.scores, T.float32(-math.inf), [r * shape.stride + i])


def _weigh(unit: _Unit, r: int) -> Expr:
    """Row r of the scores becomes weights; returns what their sums are to be multiplied by."""
    shape, lanes, given = unit.shape, unit.shape.lanes, unit.shape.given
    (most,), (total,) = registers(1, lanes), registers(1, lanes)
    sink = None
    if "sinks" in given:
        sink = settle(given["sinks"][unit.head + r] * T.float32(LOG2_E), "float32")
    lowest = T.float32(-1e30) if sink is None else sink
    store(most, 0, spread(lowest, lanes), lanes)
    store(total, 0, constant(0.0, lanes), lanes)

    def each_vector(body: Callable[[Expr], None]) -> None:
        with T.serial(0, quotient(unit.taken + (lanes - 1), lanes)) as i:
            body(T.bind(r * shape.stride + i * lanes))

    def raise_top(at: Expr) -> None:
        store(most, 0, tirx.max(load(most, 0, lanes), load(shape.scores, at, lanes)), lanes)

    each_vector(raise_top)
    top = settle(horizontal(load(most, 0, lanes), lanes, tirx.max), "float32")

    def exponential(at: Expr) -> None:
        value = load(shape.scores, at, lanes) - spread(top, lanes)
        weight = T.bind(vexp2_of_negative(value, lanes))
        store(total, 0, load(total, 0, lanes) + weight, lanes)
        store(shape.scores, at, weight, lanes)

    each_vector(exponential)
    found = horizontal(load(total, 0, lanes), lanes, operator.add)
    if sink is not None:
        found = found + vexp2_of_negative(sink - top, 1)
    found = settle(found, "float32")
    one = T.float32(1)
    return settle(tirx.Select(found > T.float32(0), one / found, T.float32(0)), "float32")


def _add_values(unit: _Unit, factors: list[Expr]) -> None:
    """out = Σ weights * values, times each row's factor."""
    shape, block, given = unit.shape, unit.shape.block, unit.shape.given
    out_at = settle((unit.token * shape.heads + unit.head) * block.value_dim, "int32")

    def columns(first: Expr, width: int, vectors: int) -> None:
        sums = [registers(vectors, width) for _ in range(unit.rows)]
        for each in (part for parts in sums for part in parts):
            store(each, 0, constant(0.0, width), width)
        with T.serial(0, unit.taken) as i:
            place = settle(shape.places[i], "int32")
            at = unit.key_row(place, block.value_elements, block.value_dim)
            values = [
                T.bind(load_values(given["v_cache"], at + first + v * width, width, block.dtype))
                for v in range(vectors)
            ]
            scale = settle(unit.scale_of("v_scale", place), "float32") if block.scaled else None
            for r, parts in enumerate(sums):
                weight = shape.scores[r * shape.stride + i]
                weight = T.bind(spread(weight if scale is None else weight * scale, width))
                for part, value in zip(parts, values, strict=True):
                    store(part, 0, fma(weight, value, load(part, 0, width), width), width)
        for r, parts in enumerate(sums):
            for v, part in enumerate(parts):
                at = out_at + r * block.value_dim + first + v * width
                total = load(part, 0, width) * spread(factors[r], width)
                store(given["out"], at, total, width)

    lanes = shape.lanes
    together = max(1, min(_VECTORS.get(lanes, 8) // unit.rows, block.value_dim // lanes))
    wide = block.value_dim // (lanes * together)
    with T.serial(0, wide) as i:
        columns(i * (lanes * together), lanes, together)
    done = wide * lanes * together
    vector_loop(block.value_dim - done, lanes, lambda first, width: columns(done + first, width, 1))
