"""What sequences begin with that earlier ones have computed, and what they leave for later ones:
blocks of keys and values, and snapshots of states."""

from __future__ import annotations

from collections.abc import Iterable

from graphwright.runtime.prefix_cache import PrefixCache
from graphwright.runtime.sequence_states import SequenceStates
from graphwright.runtime.steps import Sequence

__all__ = ["Beginnings"]


class Beginnings:
    """Of known `prefixes`, and where a model has states of their snapshots.

    worth: tokens from which on it is better to wait for what another sequence is reading than to
    read it, too.
    """

    def __init__(self, prefixes: PrefixCache, states: SequenceStates | None, worth: int) -> None:
        self._prefixes, self._states, self._worth = prefixes, states, worth

    def find(self, sequence: Sequence) -> None:
        """Gives a sequence, whose table is empty, what is known of its prompt."""
        table = sequence.table
        assert table is not None
        if sequence.adapter is not None:
            table.prefix = self._prefixes.root(sequence.adapter)
        if sequence.every_row:
            return
        if self._states is None:
            sequence.reused = self._prefixes.adopt(table, sequence.tokens)
        else:
            sequence.stops = self._states.plan(table, sequence.tokens)
            sequence.reused = sequence.stops.position
            self._prefixes.adopt(table, sequence.tokens, sequence.reused)
        sequence.computed = sequence.reused

    def is_being_read(self, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Does one of those that run compute so much of what this one begins with just now that it
        had better wait for that?"""
        return not sequence.every_row and any(
            self._is_coming(other, self._prefixes.shared(other.tokens, sequence.tokens))
            for other in running
            if other.computed < other.prompt_length and other.adapter == sequence.adapter
        )

    def _is_coming(self, sequence: Sequence, position: int) -> bool:
        """Will a sequence that reads its prompt leave enough more than it has left until now, up to
        `position`, for others to go on from there?"""
        if self._states is None:
            return position - sequence.computed >= self._worth
        stops = sequence.stops
        return stops is not None and self._states.is_coming(
            stops, sequence.computed, position, self._worth
        )

    def keep(self, sequence: Sequence) -> None:
        """Remembers the blocks of a sequence whose tokens are known."""
        if sequence.table is not None:
            self._prefixes.keep(sequence.table, sequence.tokens, sequence.computed)

    def end(self, sequence: Sequence) -> None:
        """Remembers what a sequence that goes has computed, its states included."""
        self.keep(sequence)
        if self._states is not None and sequence.stops is not None:
            assert sequence.table is not None
            self._states.ended(sequence.table, sequence.tokens, sequence.computed, sequence.stops)

    def save_states(self, running: Iterable[Sequence]) -> None:
        """Of those that are where their chunk was to end, and have started no step behind it."""
        if self._states is None:
            return
        for sequence in running:
            if sequence.stops is not None and sequence.stops.ahead:
                assert sequence.table is not None
                self._states.reached(
                    sequence.table, sequence.tokens, sequence.computed, sequence.stops
                )

    def restore_states(self, admitted: Iterable[Sequence]) -> None:
        """Of those that begin with a snapshot, in blocks that are theirs by now."""
        if self._states is None:
            return
        for sequence in admitted:
            if sequence.stops is not None:
                assert sequence.table is not None
                self._states.restore(sequence.table, sequence.stops)
