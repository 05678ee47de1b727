"""Which states share a pool of blocks: those that later tokens can read equally far back.

A pool has blocks of its own and a block table of its own, so that blocks of layers with windows are
given back while layers that see everything keep theirs (docs/decisions/0026-a-pool-for-each-reach).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from graphwright.backends.rows import MOST_POOLS
from graphwright.ir.states import ConvState, IndexState, KVState, RecurrentState, State

__all__ = ["Pool", "Reach", "pools_of"]

LONG_CONTEXT = 1 << 17  # tokens of a text, where the model has no limit
_LEAST_SHARE = 16  # a pool of its own saves at least this part of a sequence's caches


@dataclass(frozen=True)
class Reach:
    """What later tokens may read: positions before `first`, and of the others those less than
    `span` before the token that reads; None: all of them."""

    first: int = 0
    span: int | None = None

    def both(self, other: Reach) -> Reach:
        """What one or the other may read."""
        if self.span is None or other.span is None:
            return Reach()
        return Reach(max(self.first, other.first), max(self.span, other.span))

    def held(self, context: int) -> int:
        """Positions that a sequence of so many tokens holds at its end."""
        return context if self.span is None else min(context, self.first + self.span)


@dataclass(frozen=True)
class Pool:
    """The names of the states whose parts lie in a block of it, in the order of the program."""

    states: tuple[str, ...]
    reach: Reach

    def describe(self, block_bytes: int) -> dict[str, object]:
        """For plan.json."""
        reach = {"reach": {"first": self.reach.first, "span": self.reach.span}}
        return {"block_bytes": block_bytes, **(reach if self.reach.span else {})}


def pools_of(
    states: Iterable[State], block_size: int, context: int | None = None
) -> tuple[Pool, ...]:
    """At most MOST_POOLS, the one that reaches furthest first; one if there are no caches.

    context: the longest text, None without a limit. Pools are put together, those first for which
    it costs the least, until each that is left saves a part worth having of what the caches of such
    a text take. The first pool also holds the rolling states, in the first block of a sequence, and
    its first blocks have the numbers of the slots of recurrent states.
    """
    states = list(states)
    context = context or LONG_CONTEXT
    groups: dict[Reach, int] = {}
    for state in states:
        if (reach := _reach(state)) is not None:
            groups[reach] = groups.get(reach, 0) + state.bytes_per_token()
    together = {reach: reach for reach in groups}
    while len(groups) > 1:
        one, other = min(combinations(groups, 2), key=lambda pair: _cost(groups, pair, context))
        total = sum(reach.held(context) * size for reach, size in groups.items())
        worth = _cost(groups, (one, other), context) * _LEAST_SHARE > total
        if worth and len(groups) <= MOST_POOLS:
            break
        size, both = groups.pop(one) + groups.pop(other), one.both(other)
        groups[both] = groups.get(both, 0) + size
        together = {
            reach: both if found in (one, other) else found for reach, found in together.items()
        }
    order = sorted(groups, key=lambda reach: -reach.held(1 << 62)) or [Reach()]
    members: dict[Reach, list[str]] = {reach: [] for reach in order}
    for state in states:
        reach = _reach(state)
        if not isinstance(state, RecurrentState):
            members[order[0] if reach is None else together[reach]].append(state.name)
    start = any(isinstance(state, (ConvState, RecurrentState)) for state in states)
    return tuple(
        Pool(tuple(members[reach]), _keep_first(reach, block_size) if start and not i else reach)
        for i, reach in enumerate(order)
    )


def _reach(state: State) -> Reach | None:
    """None: it is no cache. Tokens choose among all index keys, so that these are kept, too."""
    if isinstance(state, IndexState) or (isinstance(state, KVState) and state.chosen):
        return Reach()
    if not isinstance(state, KVState):
        return None
    tail = state.mask.tail
    return Reach() if tail is None else Reach(state.mask.first, tail)


def _cost(groups: dict[Reach, int], pair: tuple[Reach, Reach], context: int) -> int:
    """Bytes more for a text, if both were one pool."""
    both = pair[0].both(pair[1]).held(context)
    return sum((both - reach.held(context)) * groups[reach] for reach in pair)


def _keep_first(reach: Reach, block_size: int) -> Reach:
    """The first block of a sequence stays, if it has not stayed anyway."""
    return reach if reach.span is None else Reach(max(reach.first, block_size), reach.span)
