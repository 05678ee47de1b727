"""How attention is cut into work: passes of query rows, tiles of tokens, items of heads."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.append_kv import BLOCK_SIZE
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.loops import quotient
from graphwright.ir.masks import Mask

__all__ = ["AttentionShape", "Operands", "Tile", "largest_divisor"]


@dataclass(frozen=True)
class AttentionShape:
    """The static parameters, and how the work is cut."""

    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    q_stride: int
    block_stride: int
    scale: float
    mask: Mask
    softcap: float
    lanes: int

    @property
    def vectors(self) -> int:
        """Vectors that hold one value for each key of a block."""
        return BLOCK_SIZE // self.lanes

    @property
    def most_rows(self) -> int:
        """Query rows of a pass: their score vectors must fit the registers."""
        return 8 if self.vectors == 1 else 4

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    @property
    def pass_heads(self) -> int:
        """Heads of one pass."""
        return largest_divisor(self.group, self.most_rows)

    @property
    def head_passes(self) -> int:
        """Passes over the heads of one item: few, and one where threads could starve for items."""
        passes = self.group // self.pass_heads
        return 1 if self.kv_heads < 4 else largest_divisor(passes, 4)

    @property
    def items(self) -> int:
        """Items a tile is made of."""
        return self.heads // (self.pass_heads * self.head_passes)

    @property
    def pass_tokens(self) -> int:
        """Tokens of one pass of a whole tile."""
        return self.most_rows // self.pass_heads

    @property
    def tile_tokens(self) -> int:
        """Tokens of a whole tile: four passes."""
        return self.pass_tokens * max(1, 4 // self.head_passes)


def largest_divisor(number: int, limit: int) -> int:
    return max(each for each in range(1, limit + 1) if number % each == 0)


@dataclass(frozen=True)
class Operands:
    """The kernel's pointers by name."""

    batch: Expr
    q: Expr
    k_cache: Expr
    v_cache: Expr
    positions: Expr
    query_start: Expr
    block_table: Expr
    out: Expr
    slopes: Expr = None
    sinks: Expr = None


@dataclass(frozen=True)
class Tile:
    """`tokens` tokens from `first` on, the first at `position`; the block table from `table` on."""

    first: Expr
    tokens: int
    position: Expr
    table: Expr

    def last_block(self) -> Expr:
        return quotient(self.position + (self.tokens - 1), BLOCK_SIZE)

    def low_block(self, mask: Mask) -> Expr:
        """The first block that the window and the chunk of the first token leave visible."""
        lowest: Expr = T.int32(0)
        if mask.window is not None:
            lowest = tirx.max(lowest, self.position - (mask.window - 1))
        if mask.chunk is not None:
            lowest = tirx.max(lowest, quotient(self.position, mask.chunk) * mask.chunk)
        return quotient(lowest, BLOCK_SIZE)

    def first_blocks(self, mask: Mask) -> Expr:
        """How many blocks before the low one hold keys that stay visible to all."""
        return tirx.min(T.int32(-(-mask.first // BLOCK_SIZE)), self.low_block(mask))

    def count_blocks(self, shape: AttentionShape) -> Expr:
        visible = self.last_block() - self.low_block(shape.mask) + 1
        return visible + self.first_blocks(shape.mask)
