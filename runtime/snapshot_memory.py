"""Where snapshots of states lie, and how they are copied: behind the blocks, one after the other.

A snapshot is the slot of a sequence, its first block (where rolling states lie beside the keys and
values of the first positions, and which nobody else may use), and the block that was begun when it
was taken, as the sequence goes on to write there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.kv_cache import BlockTable
from graphwright.runtime.plan import Plan

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
    """Behind `blocks` blocks of the plan. copy: what copies there."""

    def __init__(self, plan: Plan, blocks: int, copy: Copy) -> None:
        self.copy = copy
        self._plan = plan
        self._start = plan.kv_bytes(1, blocks)[1]

    def save(self, place: int, table: BlockTable, position: int) -> None:
        """Copies what a sequence of `position` tokens has to the place of this number."""
        at = self._start + place * self._plan.snapshot_bytes
        for offset, source, size in self._parts(table, position):
            self.copy(at + offset, source, size)

    def restore(self, place: int, table: BlockTable, position: int) -> None:
        """Copies it back, to another sequence that begins with the same tokens. Its table covers
        them; what lies between the first block and the one begun is shared already."""
        at = self._start + place * self._plan.snapshot_bytes
        for offset, target, size in self._parts(table, position):
            self.copy(target, at + offset, size)

    def _parts(self, table: BlockTable, position: int) -> list[tuple[int, int, int]]:
        """(bytes from the start of a place, bytes from block 0, size)."""
        slot, block = self._plan.slot_bytes, self._plan.block_bytes
        first = int(table.blocks[0])
        last, begun = divmod(position, self._plan.block_size)
        parts = [(0, -(first + 1) * slot, slot), (slot, first * block, block)]
        if self._plan.caches and last and begun:
            parts.append((slot + block, int(table.blocks[last]) * block, block))
        return [part for part in parts if part[2]]
