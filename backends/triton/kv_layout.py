"""How the states lie in a GPU's memory: one region of blocks; in a block, state by state.

Keys of a cache in a block are [heads, 16, head_dim], values [heads, 16, value_dim]: what a program
reads of a block for one head is one run of memory. Index keys lie as keys do. Caches that the graph
keeps in float32 hold the activations' type, others their own; int8 has float32 scales [heads, 16]
for each of the two. A rolling state is float32 [kept, channels] in each block; a sequence uses the
one in its first block.

Recurrent states lie in slots in front of block 0, as on CPUs (backends/tvm/kv_layout.py): slot r
starts (r + 1) * slot_bytes before it. A state's numbers lie there in their own order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from graphwright.backends.states import (
    KnownState,
    cache_of,
    describe_states,
    index_of,
    known_states,
)
from graphwright.backends.triton.dtypes import ITEM_SIZES
from graphwright.backends.triton.kernels.float8 import FLOAT8
from graphwright.ir.memory import align
from graphwright.ir.states import IndexState, KVState, RecurrentState, State

__all__ = ["BLOCK_SIZE", "KvLayout"]

BLOCK_SIZE = 16  # positions in a block


@dataclass(frozen=True)
class KvLayout:
    """states: as they are stored. offsets: bytes from a block's start by the name of the state's
    input (`kv0_k`, `conv1`), and from a slot's for recurrent states.
    """

    states: tuple[KnownState, ...]
    offsets: dict[str, int]
    block_bytes: int
    slot_bytes: int = 0

    @staticmethod
    def of(states: Iterable[State], activations: str) -> KvLayout:
        """The layout of these states; `activations` is the element type of caches that the graph
        keeps in float32. Raises BackendError for a state that it does not know.
        """
        stored = tuple(_stored(state, activations) for state in known_states(states))
        offsets: dict[str, int] = {}
        end = slot_end = 0
        for state in stored:
            if isinstance(state, RecurrentState):
                offsets[state.name] = slot_end
                slot_end = align(slot_end + state.size * 4)
                continue
            shapes = state.shapes(1, BLOCK_SIZE)
            for name, shape, dtype in zip(state.inputs, shapes, state.dtypes, strict=True):
                offsets[name] = end
                end = align(end + math.prod(shape) * dtype.itemsize)
        return KvLayout(stored, offsets, end, slot_end)

    def cache(self, name: str) -> str:
        """The element type, in kernels, of the cache whose keys are the input `name`."""
        dtype = cache_of(self.states, name).dtype
        return FLOAT8 if dtype is torch.float8_e4m3fn else str(dtype).removeprefix("torch.")

    def index_cache(self, name: str) -> str:
        """The element type of the index keys that are the input `name`."""
        return str(index_of(self.states, name).dtype).removeprefix("torch.")

    def stride(self, dtype: str) -> int:
        """Elements of `dtype` from a block to the next."""
        return self.block_bytes // ITEM_SIZES[dtype]

    @property
    def slot_stride(self) -> int:
        """float32 elements from a slot back to the next."""
        return self.slot_bytes // 4

    def place_of(self, name: str) -> int:
        """Bytes from the start of block 0 to the state's input, in that block or in slot 0."""
        recurrent = any(s.name == name for s in self.states if isinstance(s, RecurrentState))
        return self.offsets[name] - (self.slot_bytes if recurrent else 0)

    def describe(self) -> dict[str, Any]:
        """The states for plan.json."""
        return describe_states(
            self.states, self.offsets, BLOCK_SIZE, self.block_bytes, self.slot_bytes
        )


def _stored(state: KnownState, activations: str) -> KnownState:
    if isinstance(state, (KVState, IndexState)) and state.dtype is torch.float32:
        return replace(state, dtype=getattr(torch, activations))
    return state
