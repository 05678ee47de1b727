"""Queries and weights of attention as pairs of int16, for the products with int8 keys and values.

Each row has a scale: its largest magnitude over the largest integer. Sums of products stay within
int32: keys and values are at most 127 and these integers 32767, so that the 64 weights of a chunk
come to 64 * 127 * 32767 < 2^28, and a query of up to 516 channels to 516 * 127 * 32767 < 2^31. One
of more channels gets smaller integers.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.attention_work import Chunk, Pass
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE
from graphwright.backends.tvm.kernels.loops import (
    load,
    row_largest,
    settle,
    spread,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.vector import (
    at_least,
    constant,
    fma,
    reduce_lanes,
    vector_type,
)

__all__ = ["Largest", "Queries", "quantize_weights"]

MOST = 2**15 - 1  # of an int16
KEY_MOST = 127
QUERY_PIECE = 256  # channels of a query that one buffer of the function holds
TINY = 1e-30  # the least that a row is divided by: what is smaller counts as zero
ROUND = 1.5 * 2**23  # the sum with it has the rounded number in its lower bits


@dataclass(frozen=True)
class Queries:
    """The operands of a pass's rows: row r is `steps` float32s for each (buffer, start) in
    `pieces[r]`, one after the other, with the last of them for what is left."""

    pieces: list[list[tuple[Expr, Expr]]]
    steps: int

    @staticmethod
    def in_memory(work: Pass) -> Queries:
        """Those that the work of the segment shares: q, or what `write` leaves in `partial`."""
        given, rows = work.unit.given, range(work.rows)
        if work.unit.shape.block.scaled:
            places = [(given.partial, work.query_at(r)) for r in rows]
        else:
            places = [(given.q, work.q_at(r)) for r in rows]
        return Queries([[place] for place in places], work.unit.shape.steps)

    @staticmethod
    def of_pass(work: Pass) -> Queries:
        """Those of a pass alone: q, or memory of the function that is written here."""
        shape = work.unit.shape
        if not shape.block.scaled:
            return Queries.in_memory(work)
        steps = min(shape.steps, QUERY_PIECE // 2)
        count = -(-shape.steps // steps)
        rows = [[(each, 0) for each in registers(count, steps)] for _ in range(work.rows)]
        found = Queries(rows, steps)
        found.write(work)
        return found

    def write(self, work: Pass) -> None:
        """Quantizes the rows, where keys are int8."""
        if work.unit.shape.block.scaled:
            for r, pieces in enumerate(self.pieces):
                _quantize(work, r, pieces)


class Largest:
    """The largest of the weights of a row with a chunk, times the scales of their values: none is
    negative, so that their bits are in the same order, and a NaN is the largest of all."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        (self._bits,) = registers(1, lanes, "uint32")
        store(self._bits, 0, constant(0, lanes, "uint32"), lanes)

    def add(self, weights: Expr) -> None:
        """A vector of them."""
        bits = tirx.reinterpret(vector_type("uint32", self._lanes), weights)
        store(self._bits, 0, tirx.max(load(self._bits, 0, self._lanes), bits), self._lanes)

    def get(self) -> Expr:
        """The largest of all, as float32."""
        bits = reduce_lanes("umax", load(self._bits, 0, self._lanes), "uint32")
        return tirx.reinterpret("float32", bits)


def quantize_weights(
    work: Pass, chunk: Chunk, r: int, buffer: Expr, start: Expr, largest: Expr
) -> None:
    """The weights of row r, float32 in `buffer` from `start` on, become pairs in their place (half
    as long), and get a scale."""
    factor = _factor(largest, MOST)
    T.buffer_store(work.unit.weight_scales, T.float32(1) / factor, [work.state_at(r)])
    with T.serial(0, chunk.count) as b:
        weights = load(buffer, start + b * BLOCK_SIZE, BLOCK_SIZE)
        pairs = _pairs(_integers(weights, factor, BLOCK_SIZE), BLOCK_SIZE)
        store(buffer, start + b * (BLOCK_SIZE // 2), pairs, BLOCK_SIZE // 2)


def _quantize(work: Pass, r: int, pieces: list[tuple[Expr, Expr]]) -> None:
    """Row r of q as pairs in `pieces` (buffer, start), `QUERY_PIECE` channels in each but the last,
    and its scale. A channel without a partner is paired with 0."""
    unit, shape, row = work.unit, work.unit.shape, work.q_at(r)
    most = min(MOST, (2**31 - 1) // (KEY_MOST * shape.dim))
    factor = _factor(row_largest(unit.given.q, row, shape.dim, shape.lanes), most)
    T.buffer_store(unit.q_scales, T.float32(1) / factor, [work.state_at(r)])
    size = QUERY_PIECE if len(pieces) > 1 else shape.dim
    for number, (buffer, start) in enumerate(pieces):
        before = number * size

        def convert(first: Expr, width: int, buffer: Expr = buffer, start: Expr = start,
                    before: int = before) -> None:  # fmt: skip
            value = load(unit.given.q, row + before + first, width)
            integers = _integers(value, factor, width)
            at = start + T.truncdiv(first, 2)
            if width == 1:
                alone = tirx.reinterpret("float32", integers & T.int32(0xFFFF))
                T.buffer_store(buffer, alone, [at])
            else:
                store(buffer, at, _pairs(integers, width), width // 2)

        vector_loop(min(size, shape.dim - before), shape.lanes, convert)


def _factor(largest: Expr, most: int) -> Expr:
    """What makes `largest` the integer `most`. NaN if it is."""
    return settle(T.float32(most) / at_least(largest, TINY, 1), "float32")


def _integers(values: Expr, factor: Expr, width: int) -> Expr:
    """values * factor, rounded, in the lower 16 bits of int32."""
    shifted = fma(values, spread(factor, width), constant(ROUND, width), width)
    return tirx.reinterpret(vector_type("int32", width), shifted)


def _pairs(integers: Expr, width: int) -> Expr:
    """The lower halves of `width` int32 as the bits of float32, two in each."""
    narrow = tirx.Cast(f"int16x{width}", integers)
    return tirx.reinterpret(vector_type("float32", width // 2), narrow)
