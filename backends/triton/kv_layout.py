"""How the states lie in a GPU's memory: a region of blocks a pool; in a block, state by state.

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
from dataclasses import replace

import torch

from graphwright.backends.states import (
    BLOCK_SIZE,
    KnownState,
    StateLayout,
    cache_of,
    index_of,
    known_states,
)
from graphwright.backends.triton.dtypes import ITEM_SIZES
from graphwright.backends.triton.kernels.float8 import FLOAT8
from graphwright.ir.states import IndexState, KVState, State

__all__ = ["BLOCK_SIZE", "KvLayout"]


class KvLayout(StateLayout):
    """Where parts of states lie, as StateLayout says, and what is in them; `states` are as they are
    stored.
    """

    @staticmethod
    def of(states: Iterable[State], activations: str, context: int | None = None) -> KvLayout:
        """The layout of these states, for texts of up to so many tokens (None: of any length);
        `activations` is the element type of caches that the graph keeps in float32. Raises
        BackendError for a state that it does not know.
        """
        stored = tuple(_stored(state, activations) for state in known_states(states))
        return KvLayout.place(stored, context, _sizes)

    def cache(self, name: str) -> str:
        """The element type, in kernels, of the cache whose keys are the input `name`."""
        dtype = cache_of(self.states, name).dtype
        return FLOAT8 if dtype is torch.float8_e4m3fn else str(dtype).removeprefix("torch.")

    def index_cache(self, name: str) -> str:
        """The element type of the index keys that are the input `name`."""
        return str(index_of(self.states, name).dtype).removeprefix("torch.")

    def stride(self, name: str, dtype: str) -> int:
        """Elements of `dtype` from a block to the next, where the state's input `name` lies."""
        return self.bytes_of(name) // ITEM_SIZES[dtype]


def _sizes(state: KnownState) -> list[int]:
    """Bytes of each input of a state in a block."""
    shapes = zip(state.shapes(1, BLOCK_SIZE), state.dtypes, strict=True)
    return [math.prod(shape) * dtype.itemsize for shape, dtype in shapes]


def _stored(state: KnownState, activations: str) -> KnownState:
    if isinstance(state, (KVState, IndexState)) and state.dtype is torch.float32:
        return replace(state, dtype=getattr(torch, activations))
    return state
