"""The loops of one stage of a recurrence, in vectors along the last of them.

A sum over an axis that is not the last keeps its results in registers while it goes through its
terms; one whose terms lie side by side adds vectors of them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from tvm.tirx.script import builder as T

from graphwright.backends.regions.index import Index, Variable, flatten, unflatten
from graphwright.backends.regions.operands import dtype_name
from graphwright.backends.regions.reduced import Reduced
from graphwright.backends.regions.shapes import arguments
from graphwright.backends.scans.body import is_reduction
from graphwright.backends.scans.reads import static_sizes
from graphwright.backends.scans.stages import Place, Stage
from graphwright.backends.scans.tiles import Tiles, in_order
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.loops import horizontal, load, spread, store, tail_pieces
from graphwright.backends.tvm.kernels.region_expressions import cast, constant, largest, smallest
from graphwright.backends.tvm.kernels.scan_values import Memory, ScanValues
from graphwright.backends.tvm.kernels.vector import lanes_of

__all__ = ["Scope", "StageLoops", "stored_dtype"]

_AT_ONCE = 4  # vectors that a loop goes through in one turn
_ACCUMULATORS = 8  # of one sum
_WRITTEN_OUT = 8  # turns of a loop that are written one after the other
_Indices = dict[int, Index]  # by the loop over a place that they are of
_Pieces = list[tuple[Expr, int]]  # vectors: (where it starts, its width)
aten = torch.ops.aten


def stored_dtype(node: fx.Node) -> str:
    """The element type of a value in memory."""
    dtype = dtype_name(node.meta["val"].dtype)
    return "int8" if dtype == "bool" else dtype


@dataclass(frozen=True)
class Scope:
    """What the stages of a token share: memory of the placeholders that are no states, old states,
    and for each place its buffer and first element. starts: of the tile, along each of its axes."""

    tiles: Tiles
    lanes: int
    rows: Expr
    outside: Mapping[fx.Node, Memory]
    states: Sequence[Expr]
    places: Mapping[Place, tuple[Expr, Expr]]
    starts: Sequence[Expr]


class StageLoops:
    """The loops of one stage."""

    def __init__(self, scope: Scope, stage: Stage) -> None:
        self.scope, self.stage, self.tiles = scope, stage, scope.tiles
        self.local: dict[Variable, Index] = {}  # of indices along the tile's axes, those inside it
        memory = dict(scope.outside)
        for node, number in self.tiles.stages.body.old_states.items():
            memory[node] = self._memory(Place("state", number), scope.states[number], T.int32(0))
        for node, place in self.tiles.stages.stored.items():
            memory[node] = self._memory(place, *scope.places[place])
        root = None if stage.copied else stage.node
        self.values = ScanValues(memory, root, scope.rows)
        self.own = self._memory(stage.place, *scope.places[stage.place])

    def _memory(self, place: Place, buffer: Expr, first: Expr) -> Memory:
        if place.kind == "result":
            return Memory(buffer, first)
        sizes, inside = self.tiles.stages.sizes[place], self.tiles.sizes(place)

        def position(whole: Index) -> Index:
            indices = unflatten(whole, sizes)
            for axis in self.tiles.axes:
                if place in axis.dims:
                    ((variable, factor),) = indices[axis.dims[place]].terms
                    assert isinstance(variable, Variable) and factor == 1
                    indices[axis.dims[place]] = self.local[variable]
            return in_order(indices, inside, self.tiles.order(place))

        return Memory(buffer, first, position)

    def write(self) -> None:
        """All elements of the stage's place."""
        *outer, last = self.tiles.order(self.stage.place)
        size = self.tiles.sizes(self.stage.place)[last]
        if self.stage.copied or not is_reduction(self.stage.node):
            self._each(outer, {}, lambda found: self._in_vectors(found, size, self._store_group))
        elif self._sums_across_lanes():
            self._each([*outer, last], {}, self._sum_across_lanes)
        else:
            self._each(outer, {}, lambda found: self._in_vectors(found, size, self._sum_group))

    # ---- loops

    def _each(
        self, dims: Sequence[int], found: _Indices, body: Callable[[_Indices], None], turns: int = 1
    ) -> None:
        """body(the indices of loops along `dims`, and `found`). Short loops are written out, so
        that an index is known where parts of a value come from several places."""
        if not dims:
            body(found)
            return
        dim, rest = dims[0], dims[1:]
        size = self.tiles.sizes(self.stage.place)[dim]
        if size * turns <= _WRITTEN_OUT:
            for number in range(size):
                with self.values.inside():
                    own = self._index(dim, size, number, 1)
                    self._each(rest, found | {dim: own}, body, turns * size)
        else:
            with T.serial(0, size) as at, self.values.inside():
                self._each(rest, found | {dim: self._index(dim, size, at, 1)}, body, turns)

    def _in_vectors(
        self, found: _Indices, size: int, body: Callable[[_Indices, _Pieces], None]
    ) -> None:
        for group in _groups(size, self.scope.lanes):
            with group.written() as pieces, self.values.inside():
                body(found, pieces)

    def _index(self, dim: int, size: int, at: Expr, width: int) -> Index:
        """The index along loop `dim` of the place that is `at` inside the tile."""
        for axis, start in zip(self.tiles.axes, self.scope.starts, strict=True):
            if axis.dims.get(self.stage.place) == dim:
                inside = self._inside(size, at, width)
                index = self.values.lanes(0, axis.size - 1, T.bind(start + at), width)
                ((variable, _),) = index.terms
                assert isinstance(variable, Variable)
                self.local[variable] = inside
                return index
        return self._inside(size, at, width)

    def _inside(self, size: int, at: Expr, width: int) -> Index:
        if isinstance(at, int):
            return Index(frozenset(), at)
        return self.values.lanes(0, size - 1, at, width)

    def _kept(self, outer: _Indices, start: Expr, width: int) -> tuple[list[Index], Expr]:
        """(indices of the node, where the element lies) for the vector that starts at `start`."""
        place = self.stage.place
        last = self.tiles.order(place)[-1]
        own = self._index(last, self.tiles.sizes(place)[last], start, width)
        return self._element(outer | {last: own})

    def _element(self, found: _Indices) -> tuple[list[Index], Expr]:
        whole = flatten(
            [found[dim] for dim in range(len(found))], self.tiles.stages.sizes[self.stage.place]
        )
        return unflatten(whole, static_sizes(self.stage.node)), self.values.element(self.own, whole)

    def _put(self, place: Expr, value: Expr, width: int) -> None:
        buffer = self.own.buffer
        kind = "float32" if self.stage.place.kind != "scratch" else stored_dtype(self.stage.node)
        value = cast(value, kind)
        T.buffer_store(buffer, spread(value, width) if lanes_of(value) < width else value, [place])

    def _store_group(self, outer: _Indices, pieces: _Pieces) -> None:
        for start, width in pieces:
            indices, place = self._kept(outer, start, width)
            self._put(place, self.values.of(self.stage.node, indices), width)

    # ---- reductions

    def _sums_across_lanes(self) -> bool:
        """Do terms lie one after the other in what is read, rather than results?"""
        access, place = self.stage.access, self.stage.place
        last = self.tiles.order(place)[-1]
        ends = {"kept": access.kept[last], "terms": access.reduced[-1]}
        score = {"kept": 0, "terms": 0}
        for read in access.reads:
            position = self.tiles.position(read.node, read.position)
            for name, index in ends.items():
                ((variable, _),) = index.terms
                if position.coefficient(variable) == 1:
                    score[name] += math.prod(static_sizes(read.node))
        return self.tiles.sizes(place)[last] == 1 or score["terms"] > score["kept"]

    def _reduced(self, indices: list[Index]) -> tuple[Reduced, Expr, Callable[[Expr, Expr], Expr]]:
        node = self.stage.node
        of = Reduced.of(node, arguments(node), indices)
        kinds: dict[Any, tuple[float, Callable[[Expr, Expr], Expr]]] = {
            aten.sum.dim_IntList: (0, operator.add),
            aten.amax.default: (of.lowest, largest),
            aten.amin.default: (of.highest, smallest),
        }
        start, combine = kinds[node.target]
        return of, start, combine

    def _term(self, of: Reduced, terms: list[Index]) -> Expr:
        return cast(self.values.of(of.source, of.term(flatten(terms, of.sizes))), of.dtype)

    def _sum_group(self, outer: _Indices, pieces: _Pieces) -> None:
        """Results side by side: accumulators for each vector of them, which terms take in turn."""
        kept = [self._kept(outer, start, width) for start, width in pieces]
        parts = [self._reduced(indices) for indices, _ in kept]
        of, start, combine = parts[0]
        ways = _ways(of.sizes[-1], len(pieces))
        totals = [self._accumulators(ways, width, of.dtype, start) for _, width in pieces]

        def add(terms: list[Index]) -> None:
            with _in_turns(of.sizes[-1], ways) as numbers:
                for count, number in enumerate(numbers):
                    with self.values.inside():
                        last = self._inside(of.sizes[-1], number, 1)
                        for (_, width), (own, _, _), total in zip(
                            pieces, parts, totals, strict=True
                        ):
                            term = self._term(own, [*terms, last])
                            _accumulate(total[count % ways], term, width, combine)

        self._each_term(of.sizes[:-1], [], add)
        for (_, width), (_, place), total in zip(pieces, kept, totals, strict=True):
            self._put(place, _together(total, width, combine), width)

    def _sum_across_lanes(self, found: _Indices) -> None:
        """One result, of vectors of terms: an accumulator for each of those in one turn."""
        indices, place = self._element(found)
        of, start, combine = self._reduced(indices)
        groups = list(_groups(of.sizes[-1], self.scope.lanes if of.dtype == "float32" else 1))
        most = {
            width: max([width for _, width in group.vectors].count(width) for group in groups)
            for width in {width for group in groups for _, width in group.vectors}
        }
        totals = {
            width: self._accumulators(count, width, of.dtype, start)
            for width, count in most.items()
        }

        def add(terms: list[Index]) -> None:
            for group in groups:
                with group.written() as vectors, self.values.inside():
                    used = dict.fromkeys(totals, 0)
                    for first, width in vectors:
                        last = self.values.lanes(0, of.sizes[-1] - 1, first, width)
                        term = self._term(of, [*terms, last])
                        _accumulate(totals[width][used[width]], term, width, combine)
                        used[width] += 1

        self._each_term(of.sizes[:-1], [], add)
        sums = [
            horizontal(_together(total, width, combine), width, combine)
            for width, total in totals.items()
        ]
        for each in sums[1:]:
            sums[0] = combine(sums[0], each)
        self._put(place, sums[0], 1)

    def _accumulators(self, count: int, width: int, dtype: str, start: Expr) -> list[Expr]:
        found = registers(count, width, dtype)
        for each in found:
            store(each, 0, spread(constant(start, dtype), width), width)
        return found

    def _each_term(
        self, sizes: Sequence[int], terms: list[Index], body: Callable[[list[Index]], None]
    ) -> None:
        """body(the indices of loops of these sizes over terms of a reduction, behind `terms`)."""
        if not sizes:
            body(terms)
            return
        with T.serial(0, sizes[0]) as at, self.values.inside():
            self._each_term(sizes[1:], [*terms, self._inside(sizes[0], at, 1)], body)


@contextmanager
def _in_turns(count: int, each: int) -> Iterator[Sequence[Expr]]:
    """The numbers of `count` terms: all of them if they are few, else `each` in a loop's turn."""
    if count <= _WRITTEN_OUT:
        yield range(count)
    else:
        with T.serial(0, count // each) as turn:
            yield [turn * each + number for number in range(each)]


def _accumulate(total: Expr, term: Expr, width: int, combine: Callable[[Expr, Expr], Expr]) -> None:
    term = spread(term, width) if lanes_of(term) < width else term
    store(total, 0, combine(load(total, 0, width), term), width)


def _together(totals: Sequence[Expr], width: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    found = load(totals[0], 0, width)
    for each in totals[1:]:
        found = combine(found, load(each, 0, width))
    return found


def _ways(count: int, vectors: int) -> int:
    """Accumulators for each of so many vectors, that hide how long one addition takes."""
    fitting = (n for n in (8, 4, 2) if n * vectors <= _ACCUMULATORS and count % n == 0)
    return next(fitting, 1)


@dataclass(frozen=True)
class _Group:
    """Vectors that are written out one after the other: `turns` times, `step` elements further."""

    turns: int
    step: int
    vectors: list[tuple[int, int]]

    @contextmanager
    def written(self) -> Iterator[_Pieces]:
        """In a loop, where there is more than one turn."""
        if self.turns == 1:
            yield [(T.int32(first), width) for first, width in self.vectors]
        else:
            with T.serial(0, self.turns) as turn:
                yield [(turn * self.step + first, width) for first, width in self.vectors]


def _groups(count: int, lanes: int) -> Iterator[_Group]:
    full, tail = count // lanes, list(tail_pieces(count, lanes))
    at_once = next((n for n in (_AT_ONCE, 3, 2) if full % n == 0), 1) if full > _AT_ONCE else full
    if full > _AT_ONCE:
        yield _Group(full // at_once, at_once * lanes, [(i * lanes, lanes) for i in range(at_once)])
        if tail:
            yield _Group(1, 0, tail)
    else:
        yield _Group(1, 0, [*((i * lanes, lanes) for i in range(full)), *tail])
