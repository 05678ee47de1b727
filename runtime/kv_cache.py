"""The paged KV cache: blocks of positions, given to sequences as they grow (PagedAttention)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.plan import Reach

__all__ = ["BlockPool", "BlockTable"]

_NEVER = 1 << 62


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
    """The blocks of one sequence in one pool, in the order of its positions.

    Where nobody can read some in the middle any more, as they are out of reach (None: none ever
    are), they are given back, and their entries mean nothing from then on.
    """

    def __init__(
        self, pool: BlockPool, block_size: int, max_blocks: int, reach: Reach | None = None
    ) -> None:
        self._pool = pool
        self._block_size = block_size
        self._blocks: NDArray[np.int32] = np.zeros(max_blocks, np.int32)
        self._count = 0
        self._first = 0 if reach is None else -(-reach.first // block_size)
        self._span = None if reach is None else reach.span
        self._kept, self.dropped = 0, 0  # entries from the one to the other hold no blocks any more

    @property
    def blocks(self) -> NDArray[np.int32]:
        """int32 [entries up to the last block]."""
        return self._blocks[: self._count]

    def grow(self, positions: int) -> None:
        """Takes blocks until the table covers `positions` positions."""
        while self._count * self._block_size < positions:
            self._blocks[self._count] = self._pool.take(first=self._count == 0)
            self._count += 1

    def unread(self, computed: int) -> tuple[int, int]:
        """(the first, the one behind the last) number of the blocks that no token from position
        `computed` on can read; equal ones where there are none."""
        if self._span is None:
            return 0, 0
        return self._first, max(self._first, (computed + 1 - self._span) // self._block_size)

    @property
    def drops_at(self) -> int:
        """The lowest number of computed positions with which there is something to `drop`."""
        if self._span is None:
            return _NEVER
        return (max(self._first, self.dropped) + 1) * self._block_size + self._span - 1

    def adopt(self, blocks: Sequence[int | None], own: int = 0) -> None:
        """Shares the blocks of positions that were computed, in an empty table, behind `own` that
        are taken. Those that are unread behind them may be None, and are not taken."""
        assert self._count == 0, "blocks are shared before others are taken"
        self._count = own + len(blocks)
        first, end = self.unread(self._count * self._block_size)
        if end > first:
            self._kept, self.dropped = first, end
        for number, block in enumerate(blocks, own):
            if self.holds(number):
                assert block is not None, f"block {number} can be read, and nobody has it"
                self._pool.share(block)
                self._blocks[number] = block
        for number in range(own):  # when the others are nobody's to take any more
            if self.holds(number):
                self._blocks[number] = self._pool.take(first=number == 0)

    def holds(self, number: int) -> bool:
        """Has the block of this number, one of those so far, not been given back?"""
        return not self._kept <= number < self.dropped

    def drop(self, computed: int) -> int:
        """Gives back the blocks that no token from position `computed` on can read. The number
        behind the last that has ever been; 0: none has."""
        first, end = self.unread(computed)
        for number in range(max(first, self.dropped), end):
            self._pool.give_back(int(self._blocks[number]))
        if end > max(first, self.dropped):
            self._kept, self.dropped = first, end
        return self.dropped

    def release(self) -> None:
        """Gives every block back, the last one first: of what is kept, it is the first to go."""
        for part in (self.blocks[self.dropped :], self.blocks[: self._kept]):
            for block in part[::-1]:
                self._pool.give_back(int(block))
        self._count = self._kept = self.dropped = 0
