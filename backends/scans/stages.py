"""What one token stores, and in which order.

Stored are new states, results, and what reductions give; all else is computed again where it is
read. States are replaced in place, so that order matters: a stage that reads an old state comes
before the one that replaces it. Where two stages each need what the other replaces, or a stage
needs elements of its own state that it has replaced already, the new state is kept apart,
*deferred*, and takes its place when all stages of the token are done.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from graphwright.backends.regions.index import flatten
from graphwright.backends.scans.body import Body, is_reduction
from graphwright.backends.scans.reads import Access, access_of, loop_sizes, static_sizes

__all__ = ["Place", "Stage", "Stages", "plan_stages"]


@dataclass(frozen=True)
class Place:
    """Where a stored value lies: a state's memory, a part of the token's results, or scratch."""

    kind: Literal["state", "result", "scratch"]
    number: int


@dataclass(frozen=True)
class Stage:
    """Computes `node` into `place`, in loops over `sizes`; elements are in row-major order.

    copied: the node is read from another place, where it is stored.
    """

    place: Place
    node: fx.Node
    sizes: tuple[int, ...]
    access: Access
    copied: bool


@dataclass(frozen=True)
class Stages:
    """The stages in order. stored: the nodes that are read from memory, and where they lie.
    sizes: the loops over each place. deferred: numbers of the states that are replaced last."""

    body: Body
    order: tuple[Stage, ...]
    stored: Mapping[fx.Node, Place]
    sizes: Mapping[Place, tuple[int, ...]]
    deferred: frozenset[int]

    @property
    def places(self) -> dict[fx.Node, Place]:
        """Where the old states and the stored nodes lie."""
        old = {node: Place("state", number) for node, number in self.body.old_states.items()}
        return old | dict(self.stored)


def plan_stages(body: Body, kept: Collection[fx.Node] = ()) -> Stages:
    """The stages of a body; the nodes `kept` are stored, too. Raises BackendError."""
    stored = _stored(body, kept)
    roots = {Place("state", i): node for i, node in enumerate(body.new_states)}
    roots |= {Place("result", i): node for i, node in enumerate(body.results)}
    roots |= {place: node for node, place in stored.items() if place.kind == "scratch"}
    sizes = _loops(body, roots)
    stages = []
    for place, node in roots.items():
        copied = stored.get(node, place) != place
        access = access_of(node, sizes[place], stored, copied=copied)
        stages.append(Stage(place, node, sizes[place], access, copied))
    order, deferred = _ordered(body, stages, stored)
    return Stages(body, tuple(order), stored, sizes, frozenset(deferred))


def _stored(body: Body, kept: Collection[fx.Node]) -> dict[fx.Node, Place]:
    stored: dict[fx.Node, Place] = {}
    for number, node in enumerate(body.new_states):
        if node.op != "placeholder" and node.meta["val"].dtype is torch.float32:
            stored.setdefault(node, Place("state", number))
    scratch = 0
    for node in body.needed():
        if node not in stored and (is_reduction(node) or node in kept):
            stored[node] = Place("scratch", scratch)
            scratch += 1
    return stored


def _loops(body: Body, roots: Mapping[Place, fx.Node]) -> dict[Place, tuple[int, ...]]:
    """The loops over each place: for values of as many elements the same, which are the most that
    one of them has. A result of [heads * columns] is written in loops over heads and columns."""
    own = {place: loop_sizes(static_sizes(node)) for place, node in roots.items()}
    for number, state in enumerate(body.states):
        own[Place("state", number)] = loop_sizes(state.sizes)
    finest: dict[int, tuple[int, ...]] = {}
    for sizes in own.values():
        known = finest.setdefault(math.prod(sizes), sizes)
        if len(sizes) > len(known):
            finest[math.prod(sizes)] = sizes
    return {place: finest[math.prod(sizes)] for place, sizes in own.items()}


def _ordered(
    body: Body, stages: Sequence[Stage], stored: Mapping[fx.Node, Place]
) -> tuple[list[Stage], set[int]]:
    old = body.old_states
    by_place = {stage.place: stage for stage in stages}
    makers = {node: by_place[place] for node, place in stored.items()}
    deferred: set[int] = set()
    before: dict[Place, set[Place]] = {stage.place: set() for stage in stages}
    readers: dict[int, set[Place]] = {number: set() for number in old.values()}
    for stage in stages:
        own = flatten(stage.access.kept, stage.sizes)
        for read in stage.access.reads:
            if read.node in makers:
                before[stage.place].add(makers[read.node].place)
            elif read.node in old:
                number = old[read.node]
                readers[number].add(stage.place)
                if stage.place == Place("state", number) and read.position != own:
                    deferred.add(number)

    late = _of_states(stages, makers, old)
    left = dict(sorted(by_place.items(), key=lambda item: item[0] in late))
    order: list[Stage] = []

    def ready(place: Place) -> bool:
        return not before[place] & left.keys()

    def replaces_early(place: Place) -> bool:
        in_place = place.kind == "state" and place.number not in deferred
        return in_place and bool((readers[place.number] - {place}) & left.keys())

    while left:
        free = [place for place in left if ready(place)]
        chosen = next((place for place in free if not replaces_early(place)), None)
        if chosen is None:
            chosen = free[0]
            deferred.add(chosen.number)
        order.append(left.pop(chosen))
    return order, deferred


def _of_states(
    stages: Sequence[Stage], makers: Mapping[fx.Node, Stage], old: Collection[fx.Node]
) -> set[Place]:
    """The stages that need old states, or values that do. The others are better computed before:
    a processor looks ahead from one to the next of them, as it cannot over a whole state."""
    found: set[Place] = set()
    while True:
        count = len(found)
        for stage in stages:
            for read in stage.access.reads:
                if read.node in old or (read.node in makers and makers[read.node].place in found):
                    found.add(stage.place)
        if len(found) == count:
            return found
