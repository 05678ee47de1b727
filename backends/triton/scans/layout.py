"""How the values of a recurrence are laid out in tiles, and which part of them a program has.

Every value that a token stores (backends/scans/stages.py) is a tile in registers, with an axis for
each of its loops, and so are the terms of a reduction. Loops of several values share an axis where
one value is read at the other's own indices: what is read so needs no exchange between threads.
Independent axes (backends/scans/axes.py) are cut into blocks, so that there are enough programs,
and each holds few elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from graphwright.backends.regions.index import Index, Variable, unflatten
from graphwright.backends.scans.axes import Dims, independent_axes
from graphwright.backends.scans.stages import Place, Stage, Stages
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.ir.errors import BackendError

__all__ = ["LARGEST", "Layout", "Loop", "TileAxis", "layout_of"]

LARGEST = 16384  # elements of a tile: 64 KB, 32 registers of each thread of 16 warps
WARP_ELEMENTS = 1024  # of a tile that one warp takes, so that its sums need no barrier
LEAST_ELEMENTS = 128  # that programs are not cut below
PROGRAMS = 128  # of a sequence, where they do not become too small: there are as many processors
RUN = 8  # float32 numbers side by side that a program has at least: 32 bytes, a sector of the cache

Loop: TypeAlias = tuple[Place, Literal["kept", "term"], int]  # of a value, or of its terms


@dataclass(frozen=True)
class TileAxis:
    """`size` elements, of which a program has `block`, a power of two. cut: is it independent, so
    that `count` programs share it?"""

    size: int
    block: int
    cut: bool

    @property
    def count(self) -> int:
        """Programs along it."""
        return quotient_up(self.size, self.block)


@dataclass(frozen=True)
class Layout:
    """axes: those of the first state first. along: the number of each loop's axis; loops that run
    once have none."""

    stages: Stages
    axes: tuple[TileAxis, ...]
    along: Mapping[Loop, int]

    @property
    def programs(self) -> int:
        """How many there are for a sequence."""
        return math.prod(axis.count for axis in self.axes if axis.cut)

    @property
    def elements(self) -> int:
        """Of the largest tile of a program, the terms of its sum included."""
        return max(self._tile(stage) for stage in self.stages.order)

    @property
    def warps(self) -> int:
        """Of a program."""
        return max(1, min(16, self.elements // WARP_ELEMENTS))

    def blocks(self, place: Place) -> tuple[int, ...]:
        """What a program has of a place, along its loops."""
        found = (
            self.along.get((place, "kept", dim)) for dim in range(len(self.stages.sizes[place]))
        )
        return tuple(1 if number is None else self.axes[number].block for number in found)

    def _tile(self, stage: Stage) -> int:
        return math.prod(self.axes[self.along[loop]].block for loop in _loops(stage))


def layout_of(stages: Stages) -> Layout:
    """Raises BackendError when what cannot be cut is too large for a program."""
    independent = independent_axes(stages)
    along, sizes = _shared_axes(stages, independent)
    whole = [TileAxis(size, next_power_of_two(size), False) for size in sizes]
    cuttable = [
        along[place, "kept", dims[place]] for dims in independent for place in [Place("state", 0)]
    ]
    layout = Layout(stages, tuple(whole), along)
    total = max(math.prod(sizes[along[loop]] for loop in _loops(stage)) for stage in stages.order)
    most = LEAST_ELEMENTS
    while most < WARP_ELEMENTS and 2 * most * PROGRAMS <= total:
        most *= 2
    inner = _side_by_side(stages, along)
    for run in (RUN, 1):
        found = _cut(layout, cuttable, most, dict.fromkeys(inner, run))
        if found.elements <= LARGEST:
            return found
    largest = max(stages.order, key=found._tile)
    shape = [sizes[along[loop]] for loop in _loops(largest)]
    raise BackendError(
        f"a program would hold {found.elements} elements of '{largest.node.name}' at once, a tile "
        f"of {shape} of which only independent axes are cut, and {LARGEST} are the most."
    )


def _cut(layout: Layout, cuttable: list[int], most: int, least: Mapping[int, int]) -> Layout:
    """The outer axes first, into the largest blocks with which tiles have at most `most`."""
    for number in cuttable:
        axis = layout.axes[number]
        block = axis.block
        while True:
            axes = list(layout.axes)
            axes[number] = TileAxis(axis.size, block, True)
            found = Layout(layout.stages, tuple(axes), layout.along)
            if found.elements <= most or block <= least.get(number, 1):
                break
            block //= 2
        layout = found
    return layout


def _side_by_side(stages: Stages, along: Mapping[Loop, int]) -> set[int]:
    """The axes along which numbers of a state lie side by side."""
    found = set()
    for number in range(len(stages.body.states)):
        place = Place("state", number)
        last = (place, "kept", len(stages.sizes[place]) - 1)
        found |= {along[loop] for loop in along if loop == last}
    return found


def _loops(stage: Stage) -> list[Loop]:
    """Those that run more than once."""
    kept: list[Loop] = [
        (stage.place, "kept", dim) for dim, size in enumerate(stage.sizes) if size > 1
    ]
    terms: list[Loop] = [
        (stage.place, "term", dim) for dim, size in enumerate(_terms(stage)) if size > 1
    ]
    return kept + terms


def _terms(stage: Stage) -> list[int]:
    """The sizes of the loops over the terms of a reduction."""
    return [int(index.bounds()[1]) + 1 for index in stage.access.reduced]


def _shared_axes(stages: Stages, independent: list[Dims]) -> tuple[dict[Loop, int], list[int]]:
    """(the axis of each loop, the size of each axis). No two loops of a stage share one."""
    classes: dict[Loop, set[Loop]] = {}
    sizes: dict[Loop, int] = {}
    for stage in stages.order:
        for loop in _loops(stage):
            classes[loop] = {loop}
            of_loop = stage.sizes if loop[1] == "kept" else _terms(stage)
            sizes[loop] = of_loop[loop[2]]

    def unite(one: Loop, other: Loop) -> None:
        a, b = classes[one], classes[other]
        apart = not {place for place, _, _ in a} & {place for place, _, _ in b}
        if a is not b and apart and sizes[one] == sizes[other]:
            a |= b
            classes.update(dict.fromkeys(b, a))

    for dims in independent:
        first, *others = (
            (place, dim) for place, dim in dims.items() if stages.sizes[place][dim] > 1
        )
        for place, dim in others:
            unite((first[0], "kept", first[1]), (place, "kept", dim))
    for one, other in _read_alike(stages):
        unite(one, other)

    along: dict[Loop, int] = {}
    found: list[int] = []
    for loop in sorted(classes, key=_order):
        if loop not in along:
            along.update(dict.fromkeys(classes[loop], len(found)))
            found.append(sizes[loop])
    return along, found


def _order(loop: Loop) -> tuple[int, int, int, int]:
    place, kind, dim = loop
    return ["state", "result", "scratch"].index(place.kind), place.number, kind == "term", dim


def _read_alike(stages: Stages) -> list[tuple[Loop, Loop]]:
    """Loops of a stage and of what it reads at the same index, those of large values first."""
    places = stages.places
    found: list[tuple[int, tuple[Loop, Loop]]] = []
    for stage in stages.order:
        own: dict[Index, Loop] = {}
        for dim, index in enumerate(stage.access.kept):
            own[index] = (stage.place, "kept", dim)
        for dim, index in enumerate(stage.access.reduced):
            own[index] = (stage.place, "term", dim)
        for read in stage.access.reads:
            if read.node not in places:
                continue
            place = places[read.node]
            sizes = stages.sizes[place]
            for dim, index in enumerate(unflatten(read.position, sizes)):
                if sizes[dim] > 1 and index in own and _is_variable(index):
                    found.append((math.prod(sizes), (own[index], (place, "kept", dim))))
    found.sort(key=lambda each: -each[0])
    return [pair for _, pair in found]


def _is_variable(index: Index) -> bool:
    return len(index.terms) == 1 and all(isinstance(atom, Variable) for atom, _ in index.terms)
