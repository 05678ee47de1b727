"""What a sequence carries from step to step: KV caches and rolling states."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graphwright.ir.masks import Mask

__all__ = ["ConvState", "KVState", "State"]


@dataclass(frozen=True)
class State:
    """A named state. Its tensors are placeholders of the program: `inputs`, in this order."""

    name: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the placeholders that hold the state's tensors."""
        raise NotImplementedError

    def shapes(self, blocks: int, block_size: int) -> tuple[tuple[int, ...], ...]:
        """Logical shape of each input for a pool of `blocks` blocks of `block_size` positions."""
        raise NotImplementedError

    def bytes_per_token(self) -> int:
        """Bytes that one position of one sequence takes; 0 for states of constant size."""
        raise NotImplementedError


@dataclass(frozen=True)
class KVState(State):
    """Keys and values of one attention node (or of several that share them), paged.

    Logical tensors: k [blocks, block_size, heads, head_dim] and v [..., value_dim].
    A backend may store them in another order inside a block.
    """

    heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    mask: Mask

    @property
    def inputs(self) -> tuple[str, ...]:
        return (f"{self.name}_k", f"{self.name}_v")

    def shapes(self, blocks: int, block_size: int) -> tuple[tuple[int, ...], ...]:
        return (
            (blocks, block_size, self.heads, self.head_dim),
            (blocks, block_size, self.heads, self.value_dim),
        )

    def bytes_per_token(self) -> int:
        return self.heads * (self.head_dim + self.value_dim) * self.dtype.itemsize


@dataclass(frozen=True)
class ConvState(State):
    """The last inputs of a short causal convolution: its kernel's length - 1 rows per sequence.

    Logical tensor: [blocks, kept, channels]. A sequence's rows lie in the place of its first
    block, oldest position first, so that they come and go with the block.
    """

    kept: int
    channels: int
    dtype: torch.dtype

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.name,)

    def shapes(self, blocks: int, block_size: int) -> tuple[tuple[int, ...], ...]:
        return ((blocks, self.kept, self.channels),)

    def bytes_per_token(self) -> int:
        return 0
