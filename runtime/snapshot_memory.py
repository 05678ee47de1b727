"""Where snapshots of states lie, and how they are copied: behind the blocks, one after the other.

A snapshot is the slot of a sequence, its first block in each pool (where rolling states lie beside
the keys and values of the first positions, and which nobody else may use), and the block that was
begun when it was taken, as the sequence goes on to write there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.cache_pools import SequenceTables
from graphwright.runtime.plan import POOL_UNIT, Plan

__all__ = ["Copy", "SnapshotMemory", "copy_on_host"]

Copy: TypeAlias = Callable[[int, int, int], None]
"""(target, source, bytes), from the start of block 0. It may be done later, but behind all steps
that were started before it and in front of all that are started behind it."""


def copy_on_host(kv: NDArray[np.uint8]) -> Copy:
    """In the memory that `kv` is the part of from block 0 on."""
    start = kv.ctypes.data

    def copy(target: int, source: int, size: int) -> None:
        ctypes.memmove(start + target, start + source, size)

    return copy


class SnapshotMemory:
    """Behind pools of so many blocks of the plan. copy: what copies there."""

    def __init__(self, plan: Plan, sizes: Sequence[int], copy: Copy) -> None:
        self.copy = copy
        self._plan = plan
        self._start = plan.kv_bytes(1, sizes)[1]
        self._places = [POOL_UNIT * place for place in plan.pool_places(sizes)]

    def save(self, place: int, table: SequenceTables, position: int) -> None:
        """Copies what a sequence of `position` tokens has to the place of this number."""
        at = self._start + place * self._plan.snapshot_bytes
        for offset, source, size in self._parts(table, position):
            self.copy(at + offset, source, size)

    def restore(self, place: int, table: SequenceTables, position: int) -> None:
        """Copies it back, to another sequence that begins with the same tokens. Its table covers
        them; what lies between the first block and the one begun is shared already."""
        at = self._start + place * self._plan.snapshot_bytes
        for offset, target, size in self._parts(table, position):
            self.copy(target, at + offset, size)

    def _parts(self, table: SequenceTables, position: int) -> list[tuple[int, int, int]]:
        """(bytes from the start of a place, bytes from block 0, size)."""
        slot, parts = self._plan.slot_bytes, []
        if slot:
            parts.append((0, -(int(table.tables[0].blocks[0]) + 1) * slot, slot))
        last, begun = divmod(position, self._plan.block_size)
        at = slot
        for each, start, pool in zip(table.tables, self._places, self._plan.pools, strict=True):
            size = pool.block_bytes
            if each.holds(0):  # else nobody reads it any more
                parts.append((at, start + int(each.blocks[0]) * size, size))
            if self._plan.caches and last and begun:
                parts.append((at + size, start + int(each.blocks[last]) * size, size))
            at += size * (2 if self._plan.caches else 1)
        return [part for part in parts if part[2]]
