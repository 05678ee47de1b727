"""Which tokens of which sequences go into the next step: continuous batching with chunked prefill
(Orca, OSDI 2022; Sarathi-Serve, OSDI 2024). Pure bookkeeping: nothing is computed here."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from graphwright.runtime.cache_pools import CachePools, SequenceTables
from graphwright.runtime.plan import EntryPlan
from graphwright.runtime.prefix_cache import PrefixCache
from graphwright.runtime.sequence_states import SequenceStates, Stops

__all__ = ["Chunk", "Scheduler", "Sequence", "Step"]


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


class Scheduler:
    """Admits waiting sequences in order and shares each step's token and row budget.

    Decoding sequences come first, one token each; the rest of the budget prefills, oldest first.
    `pools` have blocks for `max_sequences` sequences. prefixes: where sequences look for what an
    earlier one has computed, and states: for its states; those that begin alike and come together
    wait for the first of them to have computed it. apart: no sequence's results depend on the
    others: a step takes one chunk of one prompt, or tokens of sequences that decode, by the entry
    `decode`; the two in turns.
    """

    def __init__(
        self,
        entries: Mapping[str, EntryPlan],
        pools: CachePools,
        max_sequences: int,
        prefixes: PrefixCache | None = None,
        apart: bool = False,
        states: SequenceStates | None = None,
    ) -> None:
        self._decode, self._prefill = entries["decode"], entries["prefill"]
        self._pools = pools
        self._max_sequences = max_sequences
        self._prefixes, self._states = prefixes, states
        self._apart, self._prompt_is_next = apart, True
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence, finished or not, and frees its blocks."""
        if sequence in self._running:
            self._running.remove(sequence)
            assert sequence.table is not None
            self._keep(sequence)
            if self._states is not None and sequence.stops is not None:
                self._states.ended(
                    sequence.table, sequence.tokens, sequence.computed, sequence.stops
                )
            sequence.table.release()
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def next_step(self) -> Step | None:
        """The next step; None when no sequence has a pending token. Takes the blocks it needs."""
        self._save_states()
        admitted = self._admit()
        self._drop()
        self._restore_states(admitted)
        if self._apart:
            return self._next_apart()
        tokens, rows = self._prefill.max_tokens, self._prefill.max_rows
        chunks: list[Chunk] = []
        for sequence in sorted(self._running, key=lambda each: each.pending != 1):
            chunk = self._chunk(sequence, tokens, rows)
            if chunk is not None:
                chunks.append(chunk)
                tokens -= chunk.count
                rows -= chunk.rows
        if not chunks:
            return None
        return self._step(chunks, self._prefill.max_tokens - tokens, self._prefill.max_rows - rows)

    def _next_apart(self) -> Step | None:
        prompts = [each for each in self._running if each.computed < each.prompt_length]
        decoding = [each for each in self._running if each.computed >= each.prompt_length]
        self._prompt_is_next = bool(prompts) and (self._prompt_is_next or not decoding)
        if self._prompt_is_next:
            self._prompt_is_next = False
            chosen = prompts[:1]
        else:
            self._prompt_is_next = True
            chosen = decoding[: min(self._decode.max_tokens, self._decode.max_rows)]
            # of more sequences than fit, those that waited the longest come first
            self._running = [each for each in self._running if each not in chosen] + chosen
        limits = self._prefill.max_tokens, self._prefill.max_rows
        chunks = [chunk for each in chosen if (chunk := self._chunk(each, *limits)) is not None]
        if not chunks:
            return None
        return self._step(chunks, sum(c.count for c in chunks), sum(c.rows for c in chunks))

    def _admit(self) -> list[Sequence]:
        """Those that come in now."""
        admitted: list[Sequence] = []
        later: list[Sequence] = []
        if self._waiting and len(self._running) < self._max_sequences:
            for sequence in self._running:
                self._keep(sequence)
        while self._waiting and len(self._running) < self._max_sequences:
            sequence = self._waiting.popleft()
            if self._is_being_read(sequence):
                later.append(sequence)
                continue
            sequence.table = self._pools.tables()
            if self._prefixes is not None and sequence.adapter is not None:
                sequence.table.prefix = self._prefixes.root(sequence.adapter)
            if self._prefixes is not None and not sequence.every_row:
                sequence.reused = self._adopt(self._prefixes, sequence.table, sequence)
                sequence.computed = sequence.reused
            self._running.append(sequence)
            admitted.append(sequence)
        self._waiting.extendleft(reversed(later))
        return admitted

    def _is_being_read(self, sequence: Sequence) -> bool:
        """Does another sequence compute so much of what this one begins with just now that it had
        better wait for that? A quarter of a step's tokens takes about as long as a step more.
        """
        if self._prefixes is None or sequence.every_row:
            return False
        worth = max(self._pools.block_size, self._prefill.max_tokens // 4)
        return any(
            self._is_coming(other, self._prefixes.shared(other.tokens, sequence.tokens), worth)
            for other in self._running
            if other.computed < other.prompt_length and other.adapter == sequence.adapter
        )

    def _is_coming(self, sequence: Sequence, position: int, worth: int) -> bool:
        """Will a sequence that reads its prompt leave `worth` positions more than it has left until
        now, up to `position`, for others to go on from there?"""
        if self._states is None:
            return position - sequence.computed >= worth
        stops = sequence.stops
        return stops is not None and self._states.is_coming(
            stops, sequence.computed, position, worth
        )

    def _adopt(self, prefixes: PrefixCache, table: SequenceTables, sequence: Sequence) -> int:
        if self._states is None:
            return prefixes.adopt(table, sequence.tokens)
        sequence.stops = self._states.plan(table, sequence.tokens)
        prefixes.adopt(table, sequence.tokens, sequence.stops.position)
        return sequence.stops.position

    def _save_states(self) -> None:
        """Of sequences that are where their chunk was to end."""
        for sequence in self._running if self._states is not None else ():
            if sequence.stops is not None and sequence.stops.ahead:
                assert self._states is not None and sequence.table is not None
                self._states.reached(
                    sequence.table, sequence.tokens, sequence.computed, sequence.stops
                )

    def _restore_states(self, admitted: list[Sequence]) -> None:
        for sequence in admitted:
            if sequence.stops is not None:
                assert self._states is not None and sequence.table is not None
                self._states.restore(sequence.table, sequence.stops)

    def _keep(self, sequence: Sequence) -> None:
        if self._prefixes is not None and sequence.table is not None:
            self._prefixes.keep(sequence.table, sequence.tokens, sequence.computed)

    def _drop(self) -> None:
        """Gives back what no token to come can read, of all sequences before one takes blocks.

        Steps that run still may read it; what a later one writes there is written behind them.
        """
        if not self._pools.gives_back:
            return
        for sequence in self._running:
            table = sequence.table
            assert table is not None
            if sequence.computed >= table.drops_at:
                self._keep(sequence)
                end = table.drop(sequence.computed)
                known = self._prefixes is None or table.known >= end
                assert known, "blocks are given back whose tokens nobody knows"

    def step_behind(self, rows: Mapping[Sequence, int]) -> Step | None:
        """The step behind one that runs, before anybody knows what that one chooses. Takes blocks.

        rows: of the sequences that may go on, where the running step chooses their next token; the
        others of that step end with theirs. None: the next step is to be made when tokens are
        known, as a sequence waits that has room then, or has tokens pending that are known now.
        A sequence that has ended after all is removed as usual: its row means nothing then.
        """
        waits = self._waiting and len(rows) < self._max_sequences
        if not rows or waits or any(each.pending > 0 for each in self._running):
            return None
        self._drop()
        chunks = []
        for sequence, row in rows.items():
            assert sequence.table is not None
            sequence.table.grow(sequence.computed + 1)
            chunks.append(Chunk(sequence, sequence.computed, 1, 1, front=row))
        return self._step(chunks, len(chunks), len(chunks))

    def _step(self, chunks: list[Chunk], tokens: int, rows: int) -> Step:
        fits = tokens <= self._decode.max_tokens and rows <= self._decode.max_rows
        return Step("decode" if fits else "prefill", tuple(chunks))

    def _chunk(self, sequence: Sequence, tokens: int, rows: int) -> Chunk | None:
        count = min(sequence.pending, tokens)
        if sequence.stops is not None:
            count = sequence.stops.cut(sequence.computed, count)
        if sequence.every_row:
            count = min(count, rows)
        ends = count == sequence.pending
        if count == 0 or (ends and rows == 0):
            return None
        assert sequence.table is not None
        sequence.table.grow(sequence.computed + count)
        wanted = count if sequence.every_row else int(ends)
        return Chunk(sequence, sequence.computed, count, wanted, scored=wanted - int(ends))
