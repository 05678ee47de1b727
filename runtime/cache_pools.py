"""The pools of an engine's KV cache, one for each reach of its layers, and a sequence's blocks in
all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphwright.runtime.kv_cache import BlockPool, BlockTable
from graphwright.runtime.plan import Plan, Reach

__all__ = ["CachePools", "Prefix", "SequenceTables"]


@dataclass(eq=False, slots=True)
class Prefix:
    """Tokens that a text began with, as runtime/prefix_cache.py remembers them: those of `parent`
    and of one block more; a root, which has no parent, is of none. blocks: what holds them, in each
    pool; None where it was needed for something else. longer: how many are known that go on behind
    it.
    """

    parent: Prefix | None
    tokens: tuple[int, ...]
    blocks: list[int | None]
    longer: int = 0
    forgotten: bool = False


class SequenceTables:
    """The block tables of one sequence, one in each pool.

    known: of its blocks, from the first on, that have been remembered. prefix: what they hold, None
    before any is, and no adapter makes a difference.
    drops_at: the lowest number of computed positions with which there is something to `drop`.
    """

    def __init__(self, tables: tuple[BlockTable, ...], block_size: int) -> None:
        self.tables = tables
        self._block_size = block_size
        self._covered = 0  # positions
        self.drops_at = self._next_drop()
        self.known = 0
        self.prefix: Prefix | None = None

    def grow(self, positions: int) -> None:
        """Takes blocks until the tables cover `positions` positions."""
        if positions > self._covered:
            for table in self.tables:
                table.grow(positions)
            self._covered = len(self.tables[0].blocks) * self._block_size

    def adopt(self, prefixes: Sequence[Prefix], own: int = 0) -> None:
        """Shares the blocks of prefixes, each of which goes on behind the one in front of it. own:
        so many before them are taken."""
        for number, table in enumerate(self.tables):
            table.adopt([prefix.blocks[number] for prefix in prefixes], own)
        self.known = own + len(prefixes)
        self._covered = self.known * self._block_size
        self.drops_at = self._next_drop()
        self.prefix = prefixes[-1]

    def drop(self, computed: int) -> int:
        """Gives back the blocks that no token from position `computed` on can read. The number
        behind the last of all that have been."""
        end = max(table.drop(computed) for table in self.tables)
        self.drops_at = self._next_drop()
        return end

    def _next_drop(self) -> int:
        return min(table.drops_at for table in self.tables)

    def release(self) -> None:
        """Gives every block back."""
        for table in self.tables:
            table.release()
        self._covered, self.known, self.prefix = 0, 0, None
        self.drops_at = self._next_drop()


@dataclass(frozen=True)
class CachePools:
    """reaches: of each pool; blocks out of it are given back (Plan.pool_sizes says how many suffice
    then); None: they stay. max_blocks: of a sequence."""

    pools: tuple[BlockPool, ...]
    reaches: tuple[Reach | None, ...]
    block_size: int
    max_blocks: int
    gives_back: bool = field(init=False)

    def __post_init__(self) -> None:
        assert len(self.pools) == len(self.reaches)
        object.__setattr__(self, "gives_back", any(each is not None for each in self.reaches))

    @classmethod
    def of(cls, plan: Plan, sequences: int, blocks_each: int) -> CachePools:
        """For so many sequences of so many blocks. What sequences start with in the first pool also
        says where their recurrent states are."""
        starts = sequences if plan.has_states else 0
        sizes = plan.pool_sizes(sequences, blocks_each)
        pools = tuple(BlockPool(size, 0 if n else starts) for n, size in enumerate(sizes))
        reaches = tuple(pool.reach for pool in plan.pools)
        return cls(pools, reaches, plan.block_size, blocks_each)

    def tables(self) -> SequenceTables:
        """Empty ones, for a new sequence."""
        return SequenceTables(
            tuple(
                BlockTable(pool, self.block_size, self.max_blocks, reach)
                for pool, reach in zip(self.pools, self.reaches, strict=True)
            ),
            self.block_size,
        )

    @property
    def blocks(self) -> int:
        """How many there are in all pools."""
        return sum(pool.blocks for pool in self.pools)

    @property
    def free(self) -> int:
        """How many of them nobody holds."""
        return sum(pool.free for pool in self.pools)
