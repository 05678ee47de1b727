"""How the KV cache lies in memory: one region of blocks; in a block, state by state.

Keys of a state in a block are [heads, head_dim, 16], values [heads, 16, value_dim], float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from graphwright.ir.errors import BackendError
from graphwright.ir.memory import align
from graphwright.ir.states import KVState, State

__all__ = ["BLOCK_SIZE", "KvLayout"]

BLOCK_SIZE = 16  # positions in a block: one cache line of float32


@dataclass(frozen=True)
class KvLayout:
    """offsets: bytes from a block's start, by the name of the state's input (`kv0_k`, `kv0_v`)."""

    states: tuple[KVState, ...]
    offsets: dict[str, int]
    block_bytes: int

    @staticmethod
    def of(states: Iterable[State]) -> KvLayout:
        """The layout of these states. Raises BackendError for one that is no float32 KV cache."""
        known: list[KVState] = []
        offsets: dict[str, int] = {}
        end = 0
        for state in states:
            if not isinstance(state, KVState):
                raise BackendError(
                    f"state '{state.name}' is a {type(state).__name__}, no KV cache."
                )
            if state.dtype is not torch.float32:
                raise BackendError(
                    f"state '{state.name}' is {state.dtype}; only float32 is supported."
                )
            known.append(state)
            for name, dim in zip(state.inputs, (state.head_dim, state.value_dim), strict=True):
                offsets[name] = end
                end = align(end + state.heads * dim * BLOCK_SIZE * state.dtype.itemsize)
        return KvLayout(tuple(known), offsets, end)

    @property
    def block_stride(self) -> int:
        """Elements from a block to the next."""
        return self.block_bytes // 4

    def describe(self) -> dict[str, Any]:
        """The cache for plan.json."""
        return {
            "block_size": BLOCK_SIZE,
            "block_bytes": self.block_bytes,
            "states": [
                {
                    "name": state.name,
                    "heads": state.heads,
                    "head_dim": state.head_dim,
                    "value_dim": state.value_dim,
                    "dtype": str(state.dtype).removeprefix("torch."),
                    "mask": str(state.mask),
                    "span": state.mask.span,
                    "k_offset": self.offsets[state.inputs[0]],
                    "v_offset": self.offsets[state.inputs[1]],
                }
                for state in self.states
            ],
        }
