"""The paged KV cache: blocks of positions, given to sequences as they grow (PagedAttention)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockPool", "BlockTable"]


class BlockPool:
    """Which blocks are free. The blocks' memory itself is one region, allocated elsewhere.

    The first `sequences` of the `blocks` are kept for what sequences start with: the number of a
    sequence's first block is that of its slot, too, where its recurrent states lie. 0: none are.

    A block may have several holders, and one whose content was kept stays as it is while nobody
    holds it, until no other block is free: then `on_reuse` is told.
    """

    def __init__(self, blocks: int, sequences: int) -> None:
        assert sequences <= blocks, f"{sequences} sequences cannot start in {blocks} blocks"
        self.blocks = blocks
        self.on_reuse: Callable[[int], None] = lambda block: None
        self._sequences = sequences
        self._first = list(range(sequences - 1, -1, -1))
        self._free = list(range(blocks - 1, sequences - 1, -1))
        self._kept: set[int] = set()
        self._idle: dict[int, None] = {}  # kept ones that nobody holds, in the order they came
        self._more: dict[int, int] = {}  # of blocks with several holders: how many more than one

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._first) + len(self._free) + len(self._idle)

    def take(self, *, first: bool) -> int:
        """A free block, to be the first of a sequence or another one. The pool is made large enough
        for every running sequence."""
        left = self._first if first and self._sequences else self._free
        if not left and self._idle and left is self._free:
            block = next(iter(self._idle))
            del self._idle[block]
            self._kept.remove(block)
            self.on_reuse(block)
            return block
        kind = "first" if first else "other"
        assert left, f"all {kind} ones of {self.blocks} KV blocks are taken"
        return left.pop()

    def keep(self, block: int) -> None:
        """From now on the content of a block that somebody holds is worth keeping."""
        self._kept.add(block)

    def share(self, block: int) -> None:
        """One holder more of a block whose content was kept."""
        assert block in self._kept, f"block {block} is nobody's to share"
        if block in self._idle:
            del self._idle[block]
        else:
            self._more[block] = self._more.get(block, 0) + 1

    def give_back(self, block: int) -> None:
        """A holder less; its content is not cleared."""
        more = self._more.pop(block, 0)
        if more:
            if more > 1:
                self._more[block] = more - 1
        elif block in self._kept:
            self._idle[block] = None
        else:
            (self._first if block < self._sequences else self._free).append(block)


class BlockTable:
    """The blocks of one sequence, in the order of its positions.

    Where nobody can read some in the middle any more, they are given back, and their entries mean
    nothing from then on.
    """

    def __init__(self, pool: BlockPool, block_size: int, max_blocks: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._blocks: NDArray[np.int32] = np.zeros(max_blocks, np.int32)
        self._count = 0
        self._kept, self.dropped = 0, 0  # entries from the one to the other hold no blocks any more
        self.known = 0  # of the blocks, from the first on: their content has been kept
        # the number of what they hold, in runtime/prefix_cache.py; below 0 where an adapter begins
        self.prefix = 0

    @property
    def blocks(self) -> NDArray[np.int32]:
        """int32 [entries up to the last block]."""
        return self._blocks[: self._count]

    def grow(self, positions: int) -> None:
        """Takes blocks until the table covers `positions` positions."""
        while self._count * self._block_size < positions:
            self._blocks[self._count] = self._pool.take(first=self._count == 0)
            self._count += 1

    def adopt(self, block: int, prefix: int) -> None:
        """Shares a block, behind those that were shared before."""
        assert self.known == self._count, "blocks are shared before others are taken"
        self._pool.share(block)
        self._blocks[self._count] = block
        self._count += 1
        self.know(prefix)

    def know(self, prefix: int) -> None:
        """The content of one more block has been kept; all that is has this number."""
        self.known, self.prefix = self.known + 1, prefix

    def drop(self, first: int, end: int) -> None:
        """Gives back the blocks from number `first` on, the same in all calls, that lie before
        `end`."""
        start = max(first, self.dropped)
        for number in range(start, end):
            self._pool.give_back(int(self._blocks[number]))
        if end > start:
            self._kept, self.dropped = first, end

    def release(self) -> None:
        """Gives every block back, the last one first: of what is kept, it is the first to go."""
        for part in (self.blocks[self.dropped :], self.blocks[: self._kept]):
            for block in part[::-1]:
                self._pool.give_back(int(block))
        self._count = self._kept = self.dropped = self.known = self.prefix = 0
