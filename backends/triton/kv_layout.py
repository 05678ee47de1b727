"""How the states lie in a GPU's memory: one region of blocks; in a block, state by state.

Keys of a cache in a block are [heads, 16, head_dim], values [heads, 16, value_dim]: what a program
reads of a block for one head is one run of memory. Caches hold the cache's element type; int8 has
float32 scales [heads, 16] behind the keys and behind the values. A rolling state is float32
[kept, channels] in each block; a sequence uses the one in its first block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from graphwright.backends.triton.dtypes import ITEM_SIZES
from graphwright.ir.errors import BackendError
from graphwright.ir.memory import align
from graphwright.ir.states import ConvState, KVState, State

__all__ = ["BLOCK_SIZE", "KvLayout"]

BLOCK_SIZE = 16  # positions in a block


@dataclass(frozen=True)
class KvLayout:
    """offsets: bytes from a block's start by the name of the state's input (`kv0_k`, `conv1`), and
    of the scales by that name with `.scale` behind. cache: the element type of caches.
    """

    states: tuple[KVState | ConvState, ...]
    cache: str
    offsets: dict[str, int]
    block_bytes: int

    @staticmethod
    def of(states: Iterable[State], cache: str) -> KvLayout:
        """The layout of these states. Raises BackendError for one that it does not know."""
        known: list[KVState | ConvState] = []
        offsets: dict[str, int] = {}
        end = 0

        def place(name: str, count: int, item: int) -> None:
            nonlocal end
            offsets[name] = end
            end = align(end + count * item)

        for state in states:
            if isinstance(state, KVState):
                for name, dim in zip(state.inputs, (state.head_dim, state.value_dim), strict=False):
                    place(name, state.heads * BLOCK_SIZE * dim, ITEM_SIZES[cache])
                    if cache == "int8":
                        place(f"{name}.scale", state.heads * BLOCK_SIZE, 4)
            elif isinstance(state, ConvState):
                place(state.name, state.kept * state.channels, 4)
            else:
                raise BackendError(
                    f"state '{state.name}' is a {type(state).__name__}, neither a KV cache nor the "
                    "rolling state of a convolution."
                )
            known.append(state)
        return KvLayout(tuple(known), cache, offsets, end)

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
                    "dtype": self.cache,
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
