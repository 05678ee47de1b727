"""Blocks whose keys and values are known, found again by the tokens that they are of.

A prompt that begins as an earlier one did need not be computed again up to there: a conversation
sends all its turns with each new one, and requests of a server share their instructions. Blocks are
shared whole and never written again; a sequence computes at least its last token itself, as nobody
kept the logits. Where blocks are needed, those that were free the longest are forgotten first.

Source: automatic prefix caching of vLLM (Kwon et al., PagedAttention, 2023), by tokens, not hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from graphwright.runtime.kv_cache import BlockPool, BlockTable

__all__ = ["PrefixCache"]


class PrefixCache:
    """Of the blocks of `pool`, `block_size` positions each. Not for models whose states belong to
    one sequence: rolling or recurrent ones.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool, self._block_size = pool, block_size
        # A prefix is (the number of the prefix in front of its last block, tokens of that block).
        # Numbers are never used twice, so that what follows a forgotten prefix is never found.
        self._found: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}  # its number, block
        self._keys: dict[int, tuple[int, tuple[int, ...]]] = {}  # by block
        self._numbers = count(1)
        pool.on_reuse = self._forget

    def adopt(self, table: BlockTable, tokens: Sequence[int]) -> int:
        """Puts into an empty table the known blocks that `tokens` begin with, but for the last
        token. How many positions these are.
        """
        prefix = 0
        for start in range(0, len(tokens) - self._block_size, self._block_size):
            key = (prefix, tuple(tokens[start : start + self._block_size]))
            if key not in self._found:
                break
            prefix, block = self._found[key]
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
        while (end := (table.known + 1) * self._block_size) <= min(computed, len(tokens)):
            block = int(table.blocks[table.known])
            key = (table.prefix, tuple(tokens[end - self._block_size : end]))
            if key not in self._found:
                self._found[key] = (next(self._numbers), block)
                self._keys[block] = key
                self._pool.keep(block)
            table.know(self._found[key][0])

    def _forget(self, block: int) -> None:
        del self._found[self._keys.pop(block)]
