"""How the states lie in a GPU's memory: one region of blocks; in a block, state by state.

Keys of a cache in a block are [heads, 16, head_dim], values [heads, 16, value_dim]: what a program
reads of a block for one head is one run of memory. Caches that the graph keeps in float32 hold the
activations' type, others their own; int8 has float32 scales [heads, 16] for each of the two. A
rolling state is float32 [kept, channels] in each block; a sequence uses the one in its first block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from graphwright.backends.triton.dtypes import ITEM_SIZES
from graphwright.ir.errors import BackendError
from graphwright.ir.memory import align
from graphwright.ir.states import ConvState, KVState, State

__all__ = ["BLOCK_SIZE", "KvLayout"]

BLOCK_SIZE = 16  # positions in a block


@dataclass(frozen=True)
class KvLayout:
    """offsets: bytes from a block's start by the name of the state's input (`kv0_k`, `conv1`).
    activations: the element type of caches that the graph keeps in float32.
    """

    states: tuple[KVState | ConvState, ...]
    activations: str
    offsets: dict[str, int]
    block_bytes: int

    @staticmethod
    def of(states: Iterable[State], activations: str) -> KvLayout:
        """The layout of these states. Raises BackendError for one that it does not know."""
        known: list[KVState | ConvState] = []
        offsets: dict[str, int] = {}
        end = 0
        for state in states:
            if not isinstance(state, (KVState, ConvState)):
                raise BackendError(
                    f"state '{state.name}' is a {type(state).__name__}, neither a KV cache nor the "
                    "rolling state of a convolution."
                )
            known.append(state)
            shapes = state.shapes(1, BLOCK_SIZE)
            for name, shape, dtype in zip(state.inputs, shapes, state.dtypes, strict=True):
                narrow = isinstance(state, KVState) and state.dtype is torch.float32
                kind = activations if narrow else str(dtype).removeprefix("torch.")
                offsets[name] = end
                end = align(end + math.prod(shape) * ITEM_SIZES[kind])
        return KvLayout(tuple(known), activations, offsets, end)

    def cache(self, name: str) -> str:
        """The element type of the cache whose keys are the input `name`."""
        for state in self.states:
            if isinstance(state, KVState) and state.inputs[0] == name:
                return self._cache(state)
        raise BackendError(f"'{name}' are not the keys of a cache.")

    def _cache(self, state: KVState) -> str:
        own = str(state.dtype).removeprefix("torch.")
        return self.activations if own == "float32" else own

    def stride(self, dtype: str) -> int:
        """Elements of `dtype` from a block to the next."""
        return self.block_bytes // ITEM_SIZES[dtype]

    def describe(self) -> dict[str, Any]:
        """The states for plan.json: `states` are the caches, `rolling` the rolling states."""
        return {
            "block_size": BLOCK_SIZE,
            "block_bytes": self.block_bytes,
            "states": [
                {
                    "name": state.name,
                    "heads": state.heads,
                    "head_dim": state.head_dim,
                    "value_dim": state.value_dim,
                    "dtype": self._cache(state),
                    "mask": str(state.mask),
                    "span": state.mask.span,
                    "k_offset": self.offsets[state.inputs[0]],
                    "v_offset": self.offsets[state.inputs[1]],
                }
                for state in self.states
                if isinstance(state, KVState)
            ],
            "rolling": [
                {
                    "name": state.name,
                    "kept": state.kept,
                    "channels": state.channels,
                    "dtype": "float32",
                    "offset": self.offsets[state.name],
                }
                for state in self.states
                if isinstance(state, ConvState)
            ],
        }
