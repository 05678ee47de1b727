"""Snapshots of states: which there are, of which prefixes, and which one goes next.

A state holds all tokens so far and cannot be taken back, so a prompt can begin where an earlier one
was only if the states were copied there. A snapshot stands for a prefix of full blocks
(runtime/prefix_cache.py) and the tokens behind it. Pure bookkeeping; nothing is copied
here. Those that were not used the longest are forgotten first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from graphwright.runtime.cache_pools import Prefix

__all__ = ["Snapshot", "Snapshots"]

_Key: TypeAlias = tuple[Prefix, tuple[int, ...]]


@dataclass(frozen=True)
class Snapshot:
    """The states after `position` tokens, in the place of this number."""

    place: int
    position: int


class Snapshots:
    """At most `places` of them at a time."""

    def __init__(self, places: int) -> None:
        self._free = list(range(places - 1, -1, -1))
        self._found: dict[_Key, Snapshot] = {}  # the last that was used comes last
        self._rests: dict[Prefix, set[tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def find(
        self, tokens: Sequence[int], prefixes: Iterable[tuple[int, Prefix]]
    ) -> Snapshot | None:
        """The longest one that `tokens` begin with, but for the last token at least, which is used
        now. prefixes: (position, prefix) of the known ones that they begin with, in order.
        """
        found: tuple[Snapshot, _Key] | None = None
        for end, prefix in prefixes:
            for rest in self._rests.get(prefix, ()):
                position = end + len(rest)
                if position < len(tokens) and tuple(tokens[end:position]) == rest:
                    key = prefix, rest
                    if found is None or position > found[0].position:
                        found = self._found[key], key
        if found is None:
            return None
        self._use(found[1])
        return found[0]

    def add(self, prefix: Prefix, rest: tuple[int, ...], position: int) -> Snapshot | None:
        """A place for one of `prefix` and the tokens behind it, `position` in all. None
        where there is one already, which counts as used.
        """
        key = prefix, rest
        if key in self._found:
            self._use(key)
            return None
        if not self._free:
            self._remove(next(iter(self._found)))
        snapshot = Snapshot(self._free.pop(), position)
        self._found[key] = snapshot
        self._rests.setdefault(prefix, set()).add(rest)
        return snapshot

    def forget(self, prefix: Prefix) -> None:
        """Nobody finds this prefix any more."""
        for rest in self._rests.get(prefix, set()).copy():
            self._remove((prefix, rest))

    def _use(self, key: _Key) -> None:
        self._found[key] = self._found.pop(key)

    def _remove(self, key: _Key) -> None:
        self._free.append(self._found.pop(key).place)
        prefix, rest = key
        self._rests[prefix].remove(rest)
        if not self._rests[prefix]:
            del self._rests[prefix]
