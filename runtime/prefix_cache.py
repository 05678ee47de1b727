"""Blocks whose keys and values are known, found again by the tokens that they are of.

A prompt that begins as an earlier one did need not be computed again up to there: a conversation
sends all its turns with each new one, and requests of a server share their instructions. Blocks are
shared whole and never written again; a sequence computes at least its last token itself, as nobody
kept the logits. Where blocks are needed, those that were free the longest are forgotten first.

Of layers that see all positions every block of a prefix is needed, of layers with windows only what
the token behind it reads: a prefix whose beginning is gone there is as good as a whole one. Of
models with states of one sequence the first block is its own: runtime/sequence_states.py.

Source: automatic prefix caching of vLLM (Kwon et al., PagedAttention, 2023), by tokens, not hashes;
and its hybrid KV cache manager, which looks for the longest prefix that is there in every group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from graphwright.runtime.cache_pools import CachePools, Prefix, SequenceTables
from graphwright.runtime.kv_cache import BlockTable

__all__ = ["PrefixCache"]


class PrefixCache:
    """Of the blocks of `pools`. own_first: the first blocks of a sequence are never shared; what is
    known of them is part of the prefix that the second ones end.

    A prefix stays known as long as a pool has its block, or a longer one is known: so it is found
    by walking on from the shorter ones, and what follows a forgotten prefix is never found.
    on_forget: is told of a prefix that will never be found again.
    """

    def __init__(self, pools: CachePools, own_first: bool = False) -> None:
        self._pools, self._block_size, self._own = pools.pools, pools.block_size, int(own_first)
        self._found: dict[tuple[Prefix, tuple[int, ...]], Prefix] = {}
        self._of_blocks: tuple[dict[int, Prefix], ...] = tuple({} for _ in self._pools)
        self._roots: dict[int | None, Prefix] = {}
        self.on_forget: Callable[[Prefix], None] = lambda prefix: None
        for number, pool in enumerate(self._pools):
            pool.on_reuse = partial(self._forget, number)

    def root(self, adapter: int | None) -> Prefix:
        """What texts begin with that are computed with this adapter: no tokens. Nothing that one
        has computed is another one's."""
        return self._roots.setdefault(adapter, Prefix(None, (), []))

    def of(self, tables: SequenceTables) -> Prefix:
        """What the tables of a sequence are known to hold."""
        return self.root(None) if tables.prefix is None else tables.prefix

    def walk(
        self, tables: SequenceTables, tokens: Sequence[int]
    ) -> Iterator[tuple[int, Prefix, bool]]:
        """The known prefixes that `tokens` begin with, for a sequence with these empty tables: (the
        positions of one, the prefix, have all pools what comes behind it reads of it?)."""
        runs = [_Run(table, self._own) for table in tables.tables]
        prefix = self.of(tables)
        for number in range(self._own, len(tokens) // self._block_size):
            found = self._found.get((prefix, self._tokens_of(number, tokens)))
            if found is None:
                return
            prefix, end = found, (number + 1) * self._block_size
            for run, block in zip(runs, prefix.blocks, strict=True):
                run.go_on(block)
            yield end, prefix, all(run.suffices(end) for run in runs)

    def adopt(self, tables: SequenceTables, tokens: Sequence[int], until: int | None = None) -> int:
        """Puts into empty tables the blocks of the longest known prefix of `tokens`, but for the
        last token, or up to position `until`, that all pools have what comes behind it reads of.
        How many positions it has.
        """
        limit = len(tokens) - 1 if until is None else until
        found: list[Prefix] = []
        longest = 0
        for end, prefix, suffices in self.walk(tables, tokens):
            if end > limit:
                break
            found.append(prefix)
            if suffices:
                longest = len(found)
        if longest:
            tables.adopt(found[:longest], self._own)
        return tables.known * self._block_size

    def shared(self, tokens: Sequence[int], later: Sequence[int]) -> int:
        """Positions that `later` could adopt of a sequence of these tokens."""
        size, most = self._block_size, min(len(tokens), len(later) - 1)
        count = 0
        while count + size <= most and tokens[count : count + size] == later[count : count + size]:
            count += size
        return count

    def keep(self, tables: SequenceTables, tokens: Sequence[int], computed: int) -> None:
        """Remembers the blocks of tables that are full: of the positions before `computed` whose
        tokens are known. A block that another one already stands for is not remembered.
        """
        limit = min(computed, len(tokens))
        while (max(tables.known, self._own) + 1) * self._block_size <= limit:
            number = max(tables.known, self._own)
            tables.known = number + 1
            parent = self.of(tables)
            if not parent.forgotten:  # else nobody would find it
                tables.prefix = self._kept(tables, number, parent, self._tokens_of(number, tokens))

    def _kept(
        self, tables: SequenceTables, number: int, parent: Prefix, tokens: tuple[int, ...]
    ) -> Prefix:
        """The prefix of the blocks with this number, behind another one."""
        prefix = self._found.get((parent, tokens))
        if prefix is None:
            prefix = Prefix(parent, tokens, [None] * len(self._pools))
            self._found[parent, tokens] = prefix
            parent.longer += 1
        for place, table in enumerate(tables.tables):
            if prefix.blocks[place] is None:
                block = prefix.blocks[place] = int(table.blocks[number])
                self._of_blocks[place][block] = prefix
                self._pools[place].keep(block)
        return prefix

    def _tokens_of(self, number: int, tokens: Sequence[int]) -> tuple[int, ...]:
        """By which blocks are found behind the prefix in front of them."""
        start = number if number > self._own else 0
        return tuple(tokens[start * self._block_size : (number + 1) * self._block_size])

    def _forget(self, pool: int, block: int) -> None:
        prefix = self._of_blocks[pool].pop(block)
        prefix.blocks[pool] = None
        while not prefix.longer and all(each is None for each in prefix.blocks):
            if prefix.parent is None:  # a root
                break
            del self._found[prefix.parent, prefix.tokens]
            prefix.forgotten = True
            self.on_forget(prefix)
            prefix = prefix.parent
            prefix.longer -= 1


class _Run:
    """Of the prefixes that lead to one, which have a block in one pool: from the first on without a
    gap, and up to the last. own: so many blocks before them are the sequence's own."""

    def __init__(self, table: BlockTable, own: int) -> None:
        self._unread = table.unread
        self._count = self._first = self._last = own

    def go_on(self, block: int | None) -> None:
        """The next prefix has this block."""
        self._count += 1
        self._last = 0 if block is None else self._last + 1
        self._first += self._last == self._count

    def suffices(self, positions: int) -> bool:
        """Is there all that the token behind the last prefix reads, of so many positions?"""
        first, end = self._unread(positions)
        if end == first:
            return self._first == self._count
        return self._first >= first and self._last >= self._count - end
