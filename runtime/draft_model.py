"""A smaller model beside the one that answers: it reads what sequences say and guesses on.

It has a cache of its own, in which it follows them: what it has read stays as long as it is what
was said, and going back behind a wrong guess is counting, as in the model's own cache. It reads a
sequence when the first guess is asked for, so the first token never waits for it, in chunks beside
the model's steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.buffers import describe
from graphwright.runtime.cache_pools import SequenceTables
from graphwright.runtime.library import StepLibrary
from graphwright.runtime.model_memory import ModelMemory
from graphwright.runtime.step_cost import StepCost
from graphwright.runtime.steps import Chunk, Step
from graphwright.runtime.steps import Sequence as TokenSequence

__all__ = ["DraftModel", "Follower"]

_FEW = 4  # tokens of a sequence that the step of a guess may read; more are read before


class Follower:
    """A sequence in the draft's cache: `own` has its tokens, and guesses behind them. agreed: how
    many of its tokens are those that were said."""

    def __init__(self, followed: TokenSequence, table: SequenceTables) -> None:
        self.own, self.agreed = TokenSequence([], table=table), 0
        self._followed = followed

    def catch_up(self) -> None:
        """Takes what the sequence has said since, in the place of guesses that were wrong. The
        newest token is always pending, as nobody kept the logits behind it."""
        mine, said = self.own.tokens, self._followed.tokens
        most = min(len(mine), len(said))
        while self.agreed < most and mine[self.agreed] == said[self.agreed]:
            self.agreed += 1
        self.own.computed = min(self.own.computed, self.agreed, len(said) - 1)
        mine[self.agreed :] = said[self.agreed :]
        self.agreed = len(mine)


class DraftModel:
    """Steps of the draft, in the memory of `parts`, by `library`, of up to `most` sequences. size:
    of the vocabulary of the model that answers; logits are cut to it, or filled up with tokens that
    are never guessed.
    """

    def __init__(self, parts: ModelMemory, library: StepLibrary, most: int, size: int) -> None:
        self.memory, self.plan, self.context = parts.memory, parts.plan, parts.context
        self.cost = StepCost.of(parts.plan)
        self._parts, self._library, self._size = parts, library, size
        self._decode, self._prefill = (parts.plan.entries[n] for n in ("decode", "prefill"))
        self._few = max(1, min(_FEW, self._prefill.max_tokens // most))
        self._followers: dict[TokenSequence, Follower] = {}

    def follow(self, sequence: TokenSequence) -> Follower:
        """The sequence in the draft's cache, with all that it has said."""
        found = self._followers.get(sequence)
        if found is None:
            parts = self._parts
            table = parts.pools.tables()
            found = Follower(sequence, table)
            if parts.prefixes is not None:
                for each in self._followers.values():
                    self._keep(each)
                found.own.computed = parts.prefixes.adopt(table, sequence.tokens)
                found.own.tokens += sequence.tokens[: found.own.computed]
            self._followers[sequence] = found
        found.catch_up()
        return found

    def forget(self, sequence: TokenSequence) -> None:
        """The sequence has ended."""
        found = self._followers.pop(sequence, None)
        if found is not None:
            found.catch_up()
            self._keep(found)
            assert found.own.table is not None
            found.own.table.release()

    def is_behind(self, follower: Follower) -> bool:
        """Must more be read of it than the step of a guess reads?"""
        return follower.own.pending > self._few

    def read(self, followers: Sequence[Follower]) -> None:
        """One step for those that are behind, the first ones first, as much as it takes."""
        left, chunks = self._prefill.max_tokens, []
        for each in followers:
            count = min(each.own.pending - 1, left) if self.is_behind(each) else 0
            if count:
                chunks.append(self._chunk(each.own, count, 0))
                left -= count
        if chunks:
            self._run(chunks)

    def guess(self, followers: Sequence[Follower]) -> list[NDArray[np.float32]]:
        """Logits float32 [V] behind each sequence and its guesses so far; they hold until the next
        step."""
        self._run([self._chunk(each.own, each.own.pending, 1) for each in followers])
        rows = self._parts.buffers.logits[: len(followers), : self._size]
        missing = self._size - rows.shape[1]
        if missing:
            rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-np.inf)
        return list(rows)

    def _chunk(self, own: TokenSequence, count: int, rows: int) -> Chunk:
        assert own.table is not None
        own.table.grow(own.computed + count)
        return Chunk(own, own.computed, count, rows)

    def _run(self, chunks: list[Chunk]) -> None:
        tokens = sum(chunk.count for chunk in chunks)
        fits = tokens <= self._decode.max_tokens and len(chunks) <= self._decode.max_rows
        step = Step("decode" if fits else "prefill", tuple(chunks))
        describe(step, self._parts.buffers, self._parts.blocks_each)
        self._library.run(step.entry, self._parts.buffers)
        for chunk in chunks:
            chunk.sequence.computed += chunk.count

    def _keep(self, follower: Follower) -> None:
        own, prefixes = follower.own, self._parts.prefixes
        if prefixes is not None and own.table is not None:
            # The newest token may be computed again, and what is kept is never written again.
            prefixes.keep(own.table, own.tokens, min(own.computed, follower.agreed - 1))
