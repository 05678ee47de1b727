"""How the states lie in memory: one region of slots and pools of blocks; in each, state by state.

Keys of a cache in a block are [heads, head_dim, 16], values [heads, 16, value_dim]. Where they are
int8, two channels of a key and two values lie side by side (kernels/kv_values.py), and scales
[heads, 16] follow for each. Keys of which tokens read those that they choose are [heads, 16,
head_dim], and neither they nor their values are in pairs; index keys, by which they choose, are
[heads, head_dim, 16]. A rolling state is float32 [kept, channels] in each block; a sequence
uses the one in its first block of the first pool. Every part starts at a multiple of 64 bytes.

Recurrent states are large, so that they lie in no block but in slots, one for each running
sequence, in front of block 0: slot r starts (r + 1) * slot_bytes before it. The slot of a sequence
has the number of its first block in the first pool. In which order a state's numbers lie there is
the kernel's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from graphwright.backends.states import (
    KnownState,
    StateLayout,
    cache_of,
    index_of,
    known_states,
)
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, KvBlock
from graphwright.ir.errors import BackendError
from graphwright.ir.states import ConvState, State

__all__ = ["BLOCK_SIZE", "KvLayout"]


class KvLayout(StateLayout):
    """Where parts of states lie, as StateLayout says, and what is in them, for kernels."""

    @staticmethod
    def of(states: Iterable[State], context: int | None = None) -> KvLayout:
        """The layout of these states, for texts of up to so many tokens (None: of any length).
        Raises BackendError for a state that it does not know.
        """
        known = known_states(states)
        for state in known:
            if isinstance(state, ConvState) and state.dtype is not torch.float32:
                raise BackendError(f"state '{state.name}' is {state.dtype}, not float32.")
        return KvLayout.place(known, context, _sizes)

    @property
    def block_stride(self) -> int:
        """float32 elements from a block of the first pool to the next."""
        return self.block_bytes[0] // 4

    def block_of(self, name: str) -> KvBlock:
        """What kernels must know of the cache whose keys are the input `name`."""
        state = cache_of(self.states, name)
        return KvBlock(
            state.heads, state.head_dim, state.value_dim, self.bytes_of(name),
            str(state.dtype).removeprefix("torch."), bool(state.chosen),
        )  # fmt: skip

    def index_block_of(self, name: str) -> KvBlock:
        """The same of the index keys that are the input `name`: a block without values."""
        state = index_of(self.states, name)
        dtype = str(state.dtype).removeprefix("torch.")
        return KvBlock(state.heads, state.head_dim, 0, self.bytes_of(name), dtype)


def _sizes(state: KnownState) -> list[int]:
    """Bytes of each input of a state in a block."""
    found = []
    for shape, dtype in zip(state.shapes(1, BLOCK_SIZE), state.dtypes, strict=True):
        channels = shape[-1] + (shape[-1] % 2 if dtype is torch.int8 else 0)  # in pairs
        found.append(math.prod(shape[:-1]) * channels * dtype.itemsize)
    return found
