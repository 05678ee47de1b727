"""A recurrence cut into tiles: a part of its states that fits into the first cache, and all that is
computed of it. Tiles are independent, so that threads take them, and a tile goes through all tokens
of a step while its states stay where they are.

Vectors go along the last axis of a value. Where tiles depend on each other along that, as where a
state's last axis is summed over or is a window of the last inputs, an independent axis takes its
place: states, scratch and weights lie in that order, and sums need nothing across lanes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx

from graphwright.backends.regions.index import Index, flatten, unflatten
from graphwright.backends.scans.axes import Dims, independent_axes
from graphwright.backends.scans.reads import static_sizes
from graphwright.backends.scans.stages import Place, Stages

__all__ = ["Axis", "Tiles", "tiles_of"]

TILE_BYTES = 16 << 10  # of states: a third of the smallest first cache of today's servers
PARTS = 16  # tiles that there are at least, where they do not become too small:
LEAST_BYTES = 1 << 10
LONG = 16  # elements of an axis that takes the place of the last one


@dataclass(frozen=True)
class Axis:
    """An independent axis, of which a tile has `block` elements. dims: as in independent_axes."""

    size: int
    block: int
    dims: Dims

    @property
    def count(self) -> int:
        """How many tiles there are along it."""
        return self.size // self.block


@dataclass(frozen=True)
class Tiles:
    """All axes along which there is more than one tile; tiles are numbered in row-major order.

    lanes: the axis that lies last in memory, where that is not the last one of a value anyway.
    weights: the order of the axes of those weights that lie in another one than their own.
    """

    stages: Stages
    axes: tuple[Axis, ...]
    lanes: Dims | None = None
    weights: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return math.prod(axis.count for axis in self.axes)

    def sizes(self, place: Place) -> tuple[int, ...]:
        """The loops over what a tile has of a place."""
        sizes = list(self.stages.sizes[place])
        for axis in self.axes:
            if place in axis.dims:
                sizes[axis.dims[place]] = axis.block
        return tuple(sizes)

    def elements(self, place: Place) -> int:
        """What a tile has of a place."""
        return math.prod(self.sizes(place))

    def order(self, place: Place) -> tuple[int, ...]:
        """The loops over a place from the outermost on, which is how states and scratch lie in
        memory, too."""
        dims = range(len(self.stages.sizes[place]))
        if self.lanes is None or place not in self.lanes:
            return tuple(dims)
        last = self.lanes[place]
        return (*(dim for dim in dims if dim != last), last)

    def position(self, node: fx.Node, position: Index) -> Index:
        """Where an element of a value lies in memory, if that were one tile."""
        place = self.stages.places.get(node)
        if (place is None and node not in self.weights) or (place and place.kind == "result"):
            return position
        sizes = self.stages.sizes[place] if place else static_sizes(node)
        order = self.order(place) if place else self.weights[node]
        return in_order(unflatten(position, sizes), sizes, order)


def in_order(indices: Sequence[Index], sizes: Sequence[int], order: Sequence[int]) -> Index:
    """The position of an element, where the axes lie in `order`."""
    return flatten([indices[dim] for dim in order], [sizes[dim] for dim in order])


def tiles_of(stages: Stages, lanes: int) -> Tiles:
    """Tiles of vectors of `lanes` elements: the outer axes are cut first."""
    axes = independent_axes(stages)
    states = [Place("state", number) for number in range(len(stages.body.states))]
    total = 4 * sum(state.count for state in stages.body.states)
    most = min(TILE_BYTES, max(LEAST_BYTES, -(-total // PARTS)))
    turned = _turned(stages, axes)
    found: list[Axis] = []
    for dims in axes:
        size = stages.sizes[states[0]][dims[states[0]]]
        ends = [dims[place] == len(stages.sizes[place]) - 1 for place in states]
        last = any(ends) if turned is None else dims is turned
        cut = Tiles(stages, tuple(found))
        held = sum(4 * cut.elements(place) for place in states)
        found.append(Axis(size, _block(size, -(-held // size), most, lanes if last else 1), dims))
    along = turned or next((dims for dims in axes if _is_last(stages, dims)), None)
    weights = {} if along is None else _turned_weights(stages, along)
    return Tiles(stages, tuple(axis for axis in found if axis.count > 1), turned, weights)


def _block(size: int, each: int, most: int, lanes: int) -> int:
    """The most elements of `each` bytes that fit into `most` and divide an axis of `size`; along
    vectors, not less than two of these, and whole ones."""
    least = 2 * lanes if lanes > 1 else 1
    fitting = [n for n in _divisors(size) if n >= least and n % lanes == 0]
    small = [n for n in fitting if n * each <= most]
    return max(small) if small else min(fitting, default=size)


def _divisors(size: int) -> Sequence[int]:
    return [n for n in range(1, size + 1) if size % n == 0]


def _turned(stages: Stages, axes: Sequence[Dims]) -> Dims | None:
    """The axis that takes the place of the last one. This must not depend on the CPU: those of an
    artifact share its weights."""
    first = Place("state", 0)
    if any(_is_last(stages, dims) for dims in axes):
        return None
    for dims in reversed(axes):
        if stages.sizes[first][dims[first]] >= LONG and _side_by_side(stages, dims):
            return dims
    return None


def _is_last(stages: Stages, dims: Dims) -> bool:
    first = Place("state", 0)
    return dims[first] == len(stages.sizes[first]) - 1


def _side_by_side(stages: Stages, dims: Dims) -> bool:
    """Do rows and results have the elements along an axis side by side?"""
    inside = {*stages.places, *stages.body.weights}
    for stage in stages.order:
        own = dims.get(stage.place)
        if stage.place.kind == "result" and own != len(stage.sizes) - 1:
            return False
        if own is not None:
            ((variable, _),) = stage.access.kept[own].terms
            for read in stage.access.reads:
                needs = variable in read.position.atoms()
                steps = read.position.coefficient(variable)
                if read.node not in inside and needs and steps != 1:
                    return False
    return True


def _turned_weights(stages: Stages, along: Dims) -> dict[fx.Node, tuple[int, ...]]:
    """The weights that have the axis of vectors, and only at the index that is computed, but not
    as their last one."""
    found: dict[fx.Node, set[int | None]] = {}
    weights = stages.body.weights
    for stage in stages.order:
        own = stage.access.kept[along[stage.place]] if stage.place in along else None
        for read in stage.access.reads:
            if read.node in weights:
                at = unflatten(read.position, static_sizes(read.node))
                found.setdefault(read.node, set()).add(at.index(own) if own in at else None)
    orders: dict[fx.Node, tuple[int, ...]] = {}
    for node, dims in found.items():
        last = next(iter(dims))
        if len(dims) == 1 and last is not None:
            sizes = static_sizes(node)
            rest = [dim for dim in range(len(sizes)) if dim != last]
            if any(sizes[dim] > 1 for dim in rest if dim > last):
                orders[node] = (*rest, last)
    return orders
