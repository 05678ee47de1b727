"""Which axes of a recurrence are independent: heads, channels, columns of a matrix for each head.

An axis is one of the first state that every stored value has, or that scratch lacks as a whole, so
that every stage reads of stored values only what has the same index along it. Indices are in normal
form, so that equal ones compare equal; where that does not show, the axis is not independent.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphwright.backends.regions.index import Index, unflatten
from graphwright.backends.scans.stages import Place, Stage, Stages

__all__ = ["Dims", "independent_axes"]

Dims = dict[Place, int]


def independent_axes(stages: Stages) -> list[Dims]:
    """For each independent axis: which of the loops over a place goes along it."""
    if not stages.body.states:
        return []
    first = Place("state", 0)
    found = (_along(stages, first, dim) for dim, size in enumerate(stages.sizes[first]) if size > 1)
    return [dims for dims in found if dims is not None]


def _along(stages: Stages, first: Place, dim: int) -> Dims | None:
    without: set[Place] = set()  # scratch that has no such axis
    while True:
        dims = _spread(stages, {first: dim}, without)
        wrong = _wrong(stages, dims)
        if wrong is None:
            return dims if _covers(stages, dims) else None
        if wrong.kind != "scratch" or wrong not in dims:
            return None
        without.add(wrong)


def _covers(stages: Stages, dims: Dims) -> bool:
    return all(
        place in dims and len({stages.sizes[p][d] for p, d in dims.items()}) == 1
        for place in stages.sizes
        if place.kind != "scratch"
    )


def _spread(stages: Stages, dims: Dims, without: set[Place]) -> Dims:
    """`dims` and what follows from it, from values to what reads them and to what they read."""
    while True:
        count = len(dims)
        for stage, place, at in _reads(stages):
            if place in dims and stage.place not in dims.keys() | without:
                index = at[dims[place]]
                for own, variable in enumerate(stage.access.kept):
                    if variable == index:
                        dims[stage.place] = own
            elif stage.place in dims and place not in dims.keys() | without:
                variable = stage.access.kept[dims[stage.place]]
                if variable in at:
                    dims[place] = at.index(variable)
        if len(dims) == count:
            return dims


def _wrong(stages: Stages, dims: Dims) -> Place | None:
    """A value that is read at another index along the axis."""
    for stage, place, at in _reads(stages):
        if place in dims:
            own = dims.get(stage.place)
            if own is None or at[dims[place]] != stage.access.kept[own]:
                return place
    return None


def _reads(stages: Stages) -> Iterator[tuple[Stage, Place, list[Index]]]:
    """(stage, what it reads, at which indices of the loops over that)."""
    places = stages.places
    for stage in stages.order:
        for read in stage.access.reads:
            if read.node in places:
                place = places[read.node]
                yield stage, place, unflatten(read.position, stages.sizes[place])
