"""The paged KV cache: blocks of positions, given to sequences as they grow (PagedAttention)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockPool", "BlockTable"]


class BlockPool:
    """Which blocks are free. The blocks' memory itself is one region, allocated elsewhere."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def take(self) -> int:
        """A free block. The pool is made large enough for every running sequence."""
        assert self._free, f"all {self.blocks} KV blocks are taken"
        return self._free.pop()

    def give_back(self, block: int) -> None:
        """Frees a block; its content is not cleared."""
        self._free.append(block)


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
            self._blocks[self._count] = self._pool.take()
            self._count += 1

    def release(self) -> None:
        """Gives every block back."""
        for block in self.blocks[::-1]:
            self._pool.give_back(int(block))
        self._count = 0
