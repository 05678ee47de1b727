"""Blocks whose keys and values are known, found again by the tokens that they are of.

A prompt that begins as an earlier one did need not be computed again up to there: a conversation
sends all its turns with each new one, and requests of a server share their instructions. Blocks are
shared whole and never written again; a sequence computes at least its last token itself, as nobody
kept the logits. Where blocks are needed, those that were free the longest are forgotten first.

Of models with states of one sequence the first block is its own: runtime/sequence_states.py.

Source: automatic prefix caching of vLLM (Kwon et al., PagedAttention, 2023), by tokens, not hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

from graphwright.runtime.kv_cache import BlockPool, BlockTable

__all__ = ["PrefixCache"]


class PrefixCache:
    """Of the blocks of `pool`, `block_size` positions each. own_first: the first block of a
    sequence is never shared; what is known of it is part of the key of the second one.

    on_forget: is told the number of a prefix that will never be found again.
    """

    def __init__(self, pool: BlockPool, block_size: int, own_first: bool = False) -> None:
        self._pool, self._block_size, self._own = pool, block_size, int(own_first)
        # A prefix is (the number of the prefix in front of its last block, tokens of that block).
        # Numbers are never used twice, so that what follows a forgotten prefix is never found.
        self._found: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}  # its number, block
        self._keys: dict[int, tuple[int, tuple[int, ...]]] = {}  # by block
        self._numbers = count(1)
        self.on_forget: Callable[[int], None] = lambda number: None
        pool.on_reuse = self._forget

    def known(self, tokens: Sequence[int], root: int = 0) -> Iterator[tuple[int, int, int]]:
        """The known blocks that `tokens` begin with, but for one's own: (positions up to its end,
        the number of the prefix that ends there, block). root: the number of no tokens at all."""
        prefix = root
        for number in range(self._own, len(tokens) // self._block_size):
            key = (prefix, self._tokens_of(number, tokens))
            if key not in self._found:
                return
            prefix, block = self._found[key]
            yield (number + 1) * self._block_size, prefix, block

    def adopt(self, table: BlockTable, tokens: Sequence[int], until: int | None = None) -> int:
        """Puts into an empty table the known blocks that `tokens` begin with, but for the last
        token, or up to position `until`. How many positions the table has then.
        """
        limit = len(tokens) - 1 if until is None else until
        for end, prefix, block in self.known(tokens, table.prefix):
            if end > limit:
                break
            self._pass_own(table)
            table.adopt(block, prefix)
        return table.known * self._block_size

    def shared(self, tokens: Sequence[int], later: Sequence[int]) -> int:
        """Positions that `later` could adopt of a sequence of these tokens."""
        size, most = self._block_size, min(len(tokens), len(later) - 1)
        count = 0
        while count + size <= most and tokens[count : count + size] == later[count : count + size]:
            count += size
        return count

    def keep(self, table: BlockTable, tokens: Sequence[int], computed: int) -> None:
        """Remembers the blocks of a table that are full: of the positions before `computed` whose
        tokens are known. A block that another one already stands for is not remembered.
        """
        limit = min(computed, len(tokens))
        while (max(table.known, self._own) + 1) * self._block_size <= limit:
            self._pass_own(table)
            block = int(table.blocks[table.known])
            key = (table.prefix, self._tokens_of(table.known, tokens))
            if key not in self._found:
                self._found[key] = (next(self._numbers), block)
                self._keys[block] = key
                self._pool.keep(block)
            table.know(self._found[key][0])

    def _pass_own(self, table: BlockTable) -> None:
        if self._own and table.known == 0:
            table.grow(self._block_size)
            table.know(table.prefix)

    def _tokens_of(self, number: int, tokens: Sequence[int]) -> tuple[int, ...]:
        """By which a block is found behind the prefix in front of it."""
        start = number if number > self._own else 0
        return tuple(tokens[start * self._block_size : (number + 1) * self._block_size])

    def _forget(self, block: int) -> None:
        number, _ = self._found.pop(self._keys.pop(block))
        self.on_forget(number)
