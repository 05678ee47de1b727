"""The best of a stream of scored positions, in memory that does not grow with the stream.

Twice as many candidates are kept as are wanted. When there is no more room, the worst go: the score
of the last that stays is found bit by bit, from the highest on, by counting how many are not less.
A score that is no better is then not taken at all, so that few of a long stream are. Positions come
rising and stay so; of equal scores the lower position stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.loops import load, quotient, settle, spread, store
from graphwright.backends.tvm.kernels.stage import stage
from graphwright.backends.tvm.kernels.vector import constant, reduce_lanes, vector_type

__all__ = ["Candidates", "ordered"]

_LEAST_ROOM = 256  # beside the wanted ones, so that few of them do not go at every turn


def ordered(score: Expr) -> Expr:
    """A uint32 that is larger for a larger float32 `score`, and equal for 0 and -0; never 0 for a
    number."""
    bits = T.bind(tirx.reinterpret("uint32", score))
    negative = T.shift_right(bits, T.uint32(31)) == T.uint32(1)
    flipped = tirx.Select(negative, bits ^ T.uint32(0xFFFFFFFF), bits | T.uint32(0x80000000))
    return tirx.Select(score == T.float32(0), T.uint32(0x80000000), flipped)


@dataclass(frozen=True)
class Candidates:
    """Room for twice `wanted` candidates: their `keys`, as `ordered` makes them of scores, and
    `positions`. taken: how many there are. least: a key must be larger to be taken."""

    wanted: int
    lanes: int
    keys: Expr
    positions: Expr
    taken: Expr
    least: Expr

    @staticmethod
    def on_stack(wanted: int, lanes: int) -> Candidates:
        room = _room(wanted, lanes)
        (taken,), (least,) = registers(1, 1, "int32"), registers(1, 1, "uint32")
        return Candidates(
            wanted, lanes, stage(room, "uint32"), stage(room, "int32"), taken, least
        )  # fmt: skip

    def begin(self) -> None:
        """Forgets all."""
        T.buffer_store(self.taken, T.int32(0), [0])
        T.buffer_store(self.least, T.uint32(0), [0])

    def offer(self, key: Expr, position: Expr) -> None:
        """Takes a candidate behind all before it, if it is good enough."""
        with T.If(key > self.least[0]), T.Then():
            T.buffer_store(self.keys, key, [self.taken[0]])
            T.buffer_store(self.positions, position, [self.taken[0]])
            T.buffer_store(self.taken, self.taken[0] + 1, [0])
            with T.If(self.taken[0] == _room(self.wanted, self.lanes)), T.Then():
                self.shorten()

    def finish(self) -> None:
        """Leaves the wanted ones, or all where there are no more."""
        with T.If(self.taken[0] > self.wanted), T.Then():
            self.shorten()

    def shorten(self) -> None:
        """Keeps the `wanted` best of more than that."""
        vectors = settle(quotient(self.taken[0] + (self.lanes - 1), self.lanes), "int32")
        with T.serial(self.taken[0], vectors * self.lanes) as i:
            T.buffer_store(self.keys, T.uint32(0), [i])
        (last,) = registers(1, 1, "uint32")
        T.buffer_store(last, T.uint32(0), [0])
        with T.serial(0, 32) as bit:
            trial = settle(
                last[0] | T.shift_left(T.uint32(1), tirx.Cast("uint32", 31 - bit)), "uint32"
            )
            with T.If(self._not_less(trial, vectors) >= self.wanted), T.Then():
                T.buffer_store(last, trial, [0])
        edge = settle(last[0], "uint32")
        better = self._not_less(edge + T.uint32(1), vectors)  # the largest key stands for no number
        equal, kept = registers(2, 1, "int32")
        T.buffer_store(equal, self.wanted - better, [0])  # of the last score, so many stay
        T.buffer_store(kept, T.int32(0), [0])
        with T.serial(0, self.taken[0]) as i:
            key = settle(self.keys[i], "uint32")
            tie = settle(tirx.Cast("int32", tirx.all(key == edge, equal[0] > 0)), "int32")
            with T.If(tirx.any(key > edge, tie == 1)), T.Then():
                T.buffer_store(self.keys, key, [kept[0]])
                T.buffer_store(self.positions, self.positions[i], [kept[0]])
                T.buffer_store(kept, kept[0] + 1, [0])
                T.buffer_store(equal, equal[0] - tie, [0])
        T.buffer_store(self.taken, kept[0], [0])
        T.buffer_store(self.least, edge, [0])

    def _not_less(self, key: Expr, vectors: Expr) -> Expr:
        """How many of the candidates in so many vectors have `key` or more."""
        lanes, integer = self.lanes, vector_type("int32", self.lanes)
        (counts,) = registers(1, lanes, "int32")
        store(counts, 0, constant(0, lanes, "int32"), lanes)
        with T.serial(0, vectors) as i:
            more = load(self.keys, i * lanes, lanes) >= spread(key, lanes)
            store(counts, 0, load(counts, 0, lanes) + tirx.Cast(integer, more), lanes)
        return settle(reduce_lanes("add", load(counts, 0, lanes), "int32"), "int32")


def _room(wanted: int, lanes: int) -> int:
    return -(-(wanted + max(wanted, _LEAST_ROOM)) // lanes) * lanes
