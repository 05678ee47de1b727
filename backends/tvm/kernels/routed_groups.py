"""The (token, slot) pairs of a step, sorted by the expert they are routed to.

A routed product visits *runs*: an expert and the pairs routed to it, in their order. Only experts
that somebody is routed to have a run, so that no other expert's weights are touched.

The result is int32 [groups_ints(slots)] a token, for P = rows * slots pairs (pair = row * slots +
slot): the number of runs, the P pairs in the order of their experts, the expert of each run, and
where each run starts in that order, and where the last one ends: P, but where pairs may have no
expert. Those are the last in the order, and belong to no run.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.loops import kernel_name, quotient, remainder, settle
from graphwright.backends.tvm.kernels.stage import stage
from graphwright.backends.tvm.target import Cpu

__all__ = ["Runs", "groups_ints", "routed_groups"]


def groups_ints(slots: int) -> int:
    """int32 a token that the groups of `slots` experts a token take."""
    return 3 * slots + 2  # two more than pairs, experts and starts: their number, the last start


@dataclass(frozen=True)
class Runs:
    """Where in the buffer `groups` of P `pairs` everything is."""

    groups: Expr
    pairs: Expr

    @property
    def count(self) -> Expr:
        return self.groups[0]

    def pair_index(self, number: Expr) -> Expr:
        return number + 1

    def expert_index(self, run: Expr) -> Expr:
        return self.pairs + run + 1

    def start_index(self, run: Expr) -> Expr:
        return self.pairs * 2 + run + 1

    def pair(self, number: Expr) -> Expr:
        """The pair at place `number` of the order."""
        return settle(self.groups[self.pair_index(number)], "int32")

    def expert(self, run: Expr) -> Expr:
        return settle(self.groups[self.expert_index(run)], "int32")

    def start(self, run: Expr) -> Expr:
        return settle(self.groups[self.start_index(run)], "int32")

    @property
    def end(self) -> Expr:
        """Where the last run ends: behind it are the pairs that have no expert."""
        return self.start(self.count)


def routed_groups(
    experts: int, slots: int, *, experts_stride: int, optional: bool = False, cpu: Cpu
) -> Kernel:
    """Pointers: experts int64 [rows, slots] with `experts_stride`, groups int32.

    Ids must be in 0..experts - 1; they come from gw.top_k or from constants, whose range the graph
    guarantees. If `optional` also `experts`, which is none; the engine guarantees their range. A
    counting sort, stable, by one thread: 4096 pairs take some microseconds.
    """
    kinds = experts + optional

    def body(thread: Expr, threads: Expr, rows: Expr, ids: Expr, groups: Expr) -> None:
        runs = Runs(groups, T.bind(rows * slots))

        def expert_of(pair: Expr) -> Expr:
            row, slot = quotient(pair, slots), remainder(pair, slots)
            return settle(tirx.Cast("int32", ids[row * experts_stride + slot]), "int32")

        with T.If(thread == 0), T.Then():
            ends = stage(kinds, "int32")  # pairs counted, then where the next one of each goes
            with T.serial(0, kinds) as expert:
                T.buffer_store(ends, T.int32(0), [expert])
            with T.serial(0, runs.pairs) as pair:
                expert = expert_of(pair)
                T.buffer_store(ends, ends[expert] + 1, [expert])
            _list_runs(experts, ends, runs)
            if optional:
                T.buffer_store(ends, runs.end, [experts])
            with T.serial(0, runs.pairs) as pair:
                expert = expert_of(pair)
                at = settle(ends[expert], "int32")
                T.buffer_store(groups, pair, [runs.pair_index(at)])
                T.buffer_store(ends, at + 1, [expert])

    name = kernel_name(
        "routed_groups", cpu, e=experts, s=slots, ids=experts_stride, optional=optional
    )
    return define(name, [("experts", "int64"), ("groups", "int32")], body)


def _list_runs(experts: int, ends: Expr, runs: Runs) -> None:
    """Writes the runs of experts with pairs; turns the counts in `ends` into starts."""
    groups = runs.groups
    found = T.alloc_buffer((2,), "int32")  # runs, and pairs in them
    for i in range(2):
        T.buffer_store(found, T.int32(0), [i])
    with T.serial(0, experts) as expert:
        count = settle(ends[expert], "int32")
        with T.If(count > 0), T.Then():
            T.buffer_store(groups, expert, [runs.expert_index(found[0])])
            T.buffer_store(groups, found[1], [runs.start_index(found[0])])
            T.buffer_store(ends, found[1], [expert])
            T.buffer_store(found, found[0] + 1, [0])
            T.buffer_store(found, found[1] + count, [1])
    T.buffer_store(groups, found[0], [0])
    T.buffer_store(groups, found[1], [runs.start_index(found[0])])
