"""What a sequence carries from step to step: caches, rolling and recurrent states."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from graphwright.ir.masks import Mask

__all__ = ["ConvState", "IndexState", "KVState", "RecurrentState", "State"]


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

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Element type of each input."""
        raise NotImplementedError

    def bytes_per_token(self) -> int:
        """Bytes that one position of one sequence takes; 0 for states of constant size."""
        raise NotImplementedError


@dataclass(frozen=True)
class KVState(State):
    """Keys and values of one attention node (or of several that share them), paged.

    Logical tensors: k [blocks, block_size, heads, head_dim] and v [..., value_dim] of `dtype`. In
    int8 each key and value has a scale: k_scale and v_scale, float32 [blocks, block_size, heads].
    A backend may store them in another order inside a block. chosen: of how many positions, that it
    has chosen (gw.choose_keys), each token reads them, one by one; 0: of all.
    """

    heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    mask: Mask
    chosen: int = 0

    @property
    def scaled(self) -> bool:
        """Are the values integers, with a scale for each token and head?"""
        return self.dtype is torch.int8

    @property
    def inputs(self) -> tuple[str, ...]:
        scales = (f"{self.name}_k_scale", f"{self.name}_v_scale") if self.scaled else ()
        return (f"{self.name}_k", f"{self.name}_v", *scales)

    def shapes(self, blocks: int, block_size: int) -> tuple[tuple[int, ...], ...]:
        rows = (blocks, block_size, self.heads)
        scales = (rows, rows) if self.scaled else ()
        return ((*rows, self.head_dim), (*rows, self.value_dim), *scales)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        scales = (torch.float32, torch.float32) if self.scaled else ()
        return (self.dtype, self.dtype, *scales)

    def bytes_per_token(self) -> int:
        sizes = zip(self.shapes(1, 1), self.dtypes, strict=True)
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes)


@dataclass(frozen=True)
class IndexState(State):
    """The keys that one gw.cached_choose_keys chooses by, paged as those of attention are.

    Logical tensor: [blocks, block_size, heads, head_dim] of `dtype`, of floats.
    """

    heads: int
    head_dim: int
    dtype: torch.dtype
    mask: Mask

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.name,)

    def shapes(self, blocks: int, block_size: int) -> tuple[tuple[int, ...], ...]:
        return ((blocks, block_size, self.heads, self.head_dim),)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (self.dtype,)

    def bytes_per_token(self) -> int:
        return self.heads * self.head_dim * self.dtype.itemsize


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

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (self.dtype,)

    def bytes_per_token(self) -> int:
        return 0


@dataclass(frozen=True)
class RecurrentState(State):
    """The states of one recurrence (gw.cached_scan): `size` float32 numbers per sequence.

    Logical tensor: [slots, size]. There are as many slots as sequences can run; a sequence uses the
    slot with the number of its first block, and the runtime gives first blocks such numbers.
    """

    size: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.name,)

    def shapes(self, blocks: int, block_size: int) -> tuple[tuple[int, ...], ...]:
        return ((blocks, self.size),)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (torch.float32,)

    def bytes_per_token(self) -> int:
        return 0
