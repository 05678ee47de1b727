"""The paged KV cache: blocks of positions, given to sequences as they grow (PagedAttention)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockPool", "BlockTable"]


class BlockPool:
    """Which blocks are free. The blocks' memory itself is one region, allocated elsewhere.

    The first `sequences` of the `blocks` are kept for what sequences start with: the number of a
    sequence's first block is that of its slot, too, where its recurrent states lie.
    """

    def __init__(self, blocks: int, sequences: int) -> None:
        assert sequences <= blocks, f"{sequences} sequences cannot start in {blocks} blocks"
        self.blocks = blocks
        self._sequences = sequences
        self._first = list(range(sequences - 1, -1, -1))
        self._free = list(range(blocks - 1, sequences - 1, -1))

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._first) + len(self._free)

    def take(self, *, first: bool) -> int:
        """A free block, to be the first of a sequence or another one. The pool is made large enough
        for every running sequence."""
        left = self._first if first else self._free
        kind = "first" if first else "other"
        assert left, f"all {kind} ones of {self.blocks} KV blocks are taken"
        return left.pop()

    def give_back(self, block: int) -> None:
        """Frees a block; its content is not cleared."""
        (self._first if block < self._sequences else self._free).append(block)


class BlockTable:
    """The blocks of one sequence, in the order of its positions."""

    def __init__(self, pool: BlockPool, block_size: int, max_blocks: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._blocks: NDArray[np.int32] = np.zeros(max_blocks, np.int32)
        self._count = 0

    @property
    def blocks(self) -> NDArray[np.int32]:
        """int32 [blocks held]."""
        return self._blocks[: self._count]

    def grow(self, positions: int) -> None:
        """Takes blocks until the table covers `positions` positions."""
        while self._count * self._block_size < positions:
            self._blocks[self._count] = self._pool.take(first=self._count == 0)
            self._count += 1

    def release(self) -> None:
        """Gives every block back."""
        for block in self.blocks[::-1]:
            self._pool.give_back(int(block))
        self._count = 0
