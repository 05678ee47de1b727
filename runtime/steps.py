"""What a step of the engine consists of: sequences of tokens, and chunks of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from graphwright.runtime.cache_pools import SequenceTables
from graphwright.runtime.sequence_states import Stops

__all__ = ["Chunk", "Sequence", "Step"]


@dataclass(eq=False)
class Sequence:
    """Token ids known so far, and how many positions the cache holds, or will when the steps that
    were started are done.

    every_row: logits are wanted at every position of the prompt, not only at its last one. reused:
    tokens of the prompt that need not be computed, as blocks of an earlier one are used. stops:
    where its states are kept, if they are. adapter: the number of the one that it has chosen.
    """

    tokens: list[int]
    every_row: bool = False
    computed: int = 0
    reused: int = 0
    table: SequenceTables | None = None
    stops: Stops | None = None
    adapter: int | None = None
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens that must still be computed: one while decoding, none where a step runs that has
        them all, and -1 where another one was started behind that."""
        return len(self.tokens) - self.computed


@dataclass(slots=True)  # one for each token that is decoded: frozen ones take twice the time
class Chunk:
    """`count` tokens of a sequence from position `start`; logits are wanted of the last `rows`.

    scored: how many of those rows, the first ones, say how likely the next token of the prompt is,
    and choose none. front: the sampled row of the step in front that chooses the token; None when
    it is known.
    draft: guessed tokens behind those of the sequence, the last of `count`. accepted: how many of
    them were right and have been followed by another token.
    """

    sequence: Sequence
    start: int
    count: int
    rows: int
    scored: int = 0
    front: int | None = None
    draft: Collection[int] = ()
    accepted: int = 0

    @property
    def is_prefill(self) -> bool:
        """Is any of these tokens one of the prompt?"""
        return self.start < self.sequence.prompt_length

    @property
    def chooses(self) -> bool:
        """Does one of its rows choose a token?"""
        return self.rows > self.scored

    def add_draft(self, draft: list[int]) -> None:
        """Guessed tokens are computed, too, with logits behind each. Takes the blocks they need."""
        self.draft = draft
        self.count += len(draft)
        self.rows += len(draft)
        assert self.sequence.table is not None
        self.sequence.table.grow(self.start + self.count)


@dataclass(frozen=True)
class Step:
    """What runs next, and by which entry of the library."""

    entry: str
    chunks: tuple[Chunk, ...]
