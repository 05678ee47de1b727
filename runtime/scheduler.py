"""Which tokens of which sequences go into the next step: continuous batching with chunked prefill
(Orca, OSDI 2022; Sarathi-Serve, OSDI 2024). Pure bookkeeping: nothing is computed here."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from graphwright.runtime.beginnings import Beginnings
from graphwright.runtime.cache_pools import CachePools
from graphwright.runtime.plan import EntryPlan
from graphwright.runtime.prefix_cache import PrefixCache
from graphwright.runtime.sequence_states import SequenceStates
from graphwright.runtime.steps import Chunk, Sequence, Step

__all__ = ["Scheduler"]


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
        self._beginnings: Beginnings | None = None
        if prefixes is not None:
            # a quarter of a step's tokens takes about as long as a step more
            worth = max(pools.block_size, self._prefill.max_tokens // 4)
            self._beginnings = Beginnings(prefixes, states, worth)
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
            if self._beginnings is not None:
                self._beginnings.end(sequence)
            sequence.table.release()
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def next_step(self) -> Step | None:
        """The next step; None when no sequence has a pending token. Takes the blocks it needs."""
        if self._beginnings is not None:
            self._beginnings.save_states(self._running)
        admitted = self._admit()
        self._drop()
        if self._beginnings is not None:
            self._beginnings.restore_states(admitted)
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
        beginnings = self._beginnings
        if beginnings is not None and self._waiting and len(self._running) < self._max_sequences:
            for sequence in self._running:
                beginnings.keep(sequence)
        while self._waiting and len(self._running) < self._max_sequences:
            sequence = self._waiting.popleft()
            if beginnings is not None and beginnings.is_being_read(sequence, self._running):
                later.append(sequence)
                continue
            sequence.table = self._pools.tables()
            if beginnings is not None:
                beginnings.find(sequence)
            self._running.append(sequence)
            admitted.append(sequence)
        self._waiting.extendleft(reversed(later))
        return admitted

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
                if self._beginnings is not None:
                    self._beginnings.keep(sequence)
                end = table.drop(sequence.computed)
                known = self._beginnings is None or table.known >= end
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
