"""How the states lie in memory: one region of slots and blocks; in each, state by state.

Keys of a cache in a block are [heads, head_dim, 16], values [heads, 16, value_dim]. Where they are
int8, two channels of a key and two values lie side by side (kernels/kv_values.py), and scales
[heads, 16] follow for each. Keys of which tokens read those that they choose are [heads, 16,
head_dim], and neither they nor their values are in pairs; index keys, by which they choose, are
[heads, head_dim, 16]. A rolling state is float32 [kept, channels] in each block; a sequence
uses the one in its first block. Every part starts at a multiple of 64 bytes.

Recurrent states are large, so that they lie in no block but in slots, one for each running
sequence, in front of block 0: slot r starts (r + 1) * slot_bytes before it. The slot of a sequence
has the number of its first block. In which order a state's numbers lie there is the kernel's
business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from graphwright.backends.states import (
    KnownState,
    cache_of,
    describe_states,
    index_of,
    known_states,
)
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, KvBlock
from graphwright.ir.errors import BackendError
from graphwright.ir.memory import align
from graphwright.ir.states import ConvState, RecurrentState, State

__all__ = ["BLOCK_SIZE", "KvLayout"]


@dataclass(frozen=True)
class KvLayout:
    """offsets: bytes from a block's start, by the name of the state's input (`kv0_k`, `conv1`), and
    from a slot's for recurrent states."""

    states: tuple[KnownState, ...]
    offsets: dict[str, int]
    block_bytes: int
    slot_bytes: int = 0

    @staticmethod
    def of(states: Iterable[State]) -> KvLayout:
        """The layout of these states. Raises BackendError for one that it does not know."""
        known = known_states(states)
        offsets: dict[str, int] = {}
        end = slot_end = 0
        for state in known:
            if isinstance(state, RecurrentState):
                offsets[state.name] = slot_end
                slot_end = align(slot_end + state.size * 4)
                continue
            if isinstance(state, ConvState) and state.dtype is not torch.float32:
                raise BackendError(f"state '{state.name}' is {state.dtype}, not float32.")
            shapes = state.shapes(1, BLOCK_SIZE)
            for name, shape, dtype in zip(state.inputs, shapes, state.dtypes, strict=True):
                channels = shape[-1] + (shape[-1] % 2 if dtype is torch.int8 else 0)  # in pairs
                offsets[name] = end
                end = align(end + math.prod(shape[:-1]) * channels * dtype.itemsize)
        return KvLayout(known, offsets, end, slot_end)

    @property
    def block_stride(self) -> int:
        """float32 elements from a block to the next."""
        return self.block_bytes // 4

    @property
    def slot_stride(self) -> int:
        """float32 elements from a slot back to the next."""
        return self.slot_bytes // 4

    def place_of(self, name: str) -> int:
        """Bytes from the start of block 0 to the state's input, in that block or in slot 0."""
        recurrent = any(s.name == name for s in self.states if isinstance(s, RecurrentState))
        return self.offsets[name] - (self.slot_bytes if recurrent else 0)

    def block_of(self, name: str) -> KvBlock:
        """What kernels must know of the cache whose keys are the input `name`."""
        state = cache_of(self.states, name)
        return KvBlock(
            state.heads, state.head_dim, state.value_dim, self.block_bytes,
            str(state.dtype).removeprefix("torch."), bool(state.chosen),
        )  # fmt: skip

    def index_block_of(self, name: str) -> KvBlock:
        """The same of the index keys that are the input `name`: a block without values."""
        state = index_of(self.states, name)
        dtype = str(state.dtype).removeprefix("torch.")
        return KvBlock(state.heads, state.head_dim, 0, self.block_bytes, dtype)

    def describe(self) -> dict[str, Any]:
        """The states for plan.json."""
        return describe_states(
            self.states, self.offsets, BLOCK_SIZE, self.block_bytes, self.slot_bytes
        )
