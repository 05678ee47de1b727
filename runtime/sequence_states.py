"""Prompts that begin alike, for models with rolling or recurrent states: when those are copied.

A step leaves the states at the end of its chunk only, so where a snapshot is wanted inside a
prompt, a chunk ends. There are four such points, none of which costs more than one small step:

* where a prompt departs from a known one: others with the same beginning will come;
* where prompts depart from one that is being read: they wait until it is there;
* near the end of a prompt, in front of what a template adds to ask for an answer;
* where a text ends, as the next turn of a conversation begins with it. No step is added for that.

Source: the admission of Marconi (Pan et al., Prefix Caching for the Era of Hybrid LLMs, MLSys
2025); docs/decisions/0027-snapshots-of-states.md says what is different.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from graphwright.runtime.cache_pools import SequenceTables
from graphwright.runtime.prefix_cache import PrefixCache
from graphwright.runtime.snapshot_memory import SnapshotMemory
from graphwright.runtime.snapshots import Snapshot, Snapshots

__all__ = ["SequenceStates", "Stops"]

_STEP_PAYS = 4  # blocks that a snapshot must save beyond the one before it to be worth a step


@dataclass
class Stops:
    """Of one sequence. begin: the snapshot that it begins with. ahead: positions at which chunks
    end and snapshots are wanted, in order. last: the position of the last one that there is."""

    begin: Snapshot | None
    ahead: list[int]
    last: int = 0

    @property
    def position(self) -> int:
        """How many tokens need not be computed."""
        return 0 if self.begin is None else self.begin.position

    def cut(self, start: int, count: int) -> int:
        """Of a chunk of `count` tokens from `start` on, those up to the next stop."""
        return min(count, self.ahead[0] - start) if self.ahead else count


class SequenceStates:
    """`places` snapshots in `memory`, of prefixes that `prefixes` knows, in blocks of `block_size`
    positions."""

    def __init__(
        self, prefixes: PrefixCache, memory: SnapshotMemory, block_size: int, places: int
    ) -> None:
        self.memory = memory
        self._prefixes, self._block_size = prefixes, block_size
        self._snapshots = Snapshots(places)
        prefixes.on_forget = self._snapshots.forget

    def __len__(self) -> int:
        return len(self._snapshots)

    def plan(self, table: SequenceTables, tokens: Sequence[int]) -> Stops:
        """Where a prompt begins, for a sequence with this empty table, and where its chunks are to
        end. Where blocks are gone that are read behind a snapshot it cannot begin."""
        known, departs = [(0, self._prefixes.of(table))], 0
        for end, prefix, suffices in self._prefixes.walk(table, tokens):
            departs = end
            if suffices:
                known.append((end, prefix))
        begin = self._snapshots.find(tokens, known)
        stops = Stops(begin, [])
        last = stops.last = stops.position
        tail = self._block_size // 2
        near_end = max(0, len(tokens) - tail) // self._block_size * self._block_size
        for position in sorted((departs, near_end)):
            if position < len(tokens) and position - last >= _STEP_PAYS * self._block_size:
                stops.ahead.append(position)
                last = position
        return stops

    def is_coming(self, stops: Stops, computed: int, position: int, worth: int) -> bool:
        """Will there be a snapshot up to `position` of a sequence that has `computed` tokens, which
        saves `worth` more than its last one? If that is wanted nowhere yet, it is at `position`.
        """

        def pays(stop: int) -> bool:
            return computed < stop <= position and stop - stops.last >= worth

        if any(pays(each) for each in stops.ahead):
            return True
        if pays(position):
            insort(stops.ahead, position)
            return True
        return False

    def restore(self, table: SequenceTables, stops: Stops) -> None:
        """Gives a sequence the states that it begins with; its table has the blocks that it shares,
        and takes the others that it needs for that."""
        if stops.begin is None:
            return
        position = stops.begin.position
        assert max(1, table.known) == max(1, position // self._block_size), (
            "its blocks are not there"
        )
        table.grow(position)
        self.memory.restore(stops.begin.place, table, position)

    def reached(
        self, table: SequenceTables, tokens: Sequence[int], computed: int, stops: Stops
    ) -> None:
        """Takes a snapshot if a sequence is at a stop. Its next step has not been started."""
        if stops.ahead and computed == stops.ahead[0]:
            del stops.ahead[0]
            self._save(table, tokens, computed, stops)

    def ended(
        self, table: SequenceTables, tokens: Sequence[int], computed: int, stops: Stops
    ) -> None:
        """Takes one of the text of a sequence that goes, if that saves a block. A step that ran
        ahead may have computed a token that nobody knows: then there is none."""
        if computed <= len(tokens) and computed - stops.last >= self._block_size:
            self._save(table, tokens, computed, stops)

    def _save(
        self, table: SequenceTables, tokens: Sequence[int], computed: int, stops: Stops
    ) -> None:
        self._prefixes.keep(table, tokens, computed)
        prefix = self._prefixes.of(table)
        if prefix.forgotten:
            return  # nobody would find it
        start = table.known * self._block_size if prefix.parent is not None else 0
        snapshot = self._snapshots.add(prefix, tuple(tokens[start:computed]), computed)
        if snapshot is not None:
            self.memory.save(snapshot.place, table, computed)
        stops.last = computed
