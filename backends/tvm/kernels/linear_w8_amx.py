"""The inner loop of products by 8-bit weights in AMX's tile registers, for many rows."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.amx import (
    DEPTH,
    HEIGHT,
    PAIR,
    begin_tiles,
    end_tiles,
    heights_of,
    sum_up,
)
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.linear_w8 import ProductW8
from graphwright.backends.tvm.kernels.matmul import TILE
from graphwright.backends.tvm.kernels.quantize_rows import padded, row_size

__all__ = ["ProductW8Amx"]


@dataclass(frozen=True)
class ProductW8Amx(ProductW8):
    """ProductW8 whose blocks have up to 32 rows; one scale for each row and channel."""

    def multiply(self, rows: list[Expr], tiles: list[Expr]) -> None:
        """Sums up the block of these row and tile numbers into `sums`.

        Row numbers follow each other, but that those behind the last row repeat it.
        """
        begin_tiles(heights_of(rows))
        stride, width = row_size(self.k, self.group), len(tiles) * TILE
        offsets = [T.bind(row * stride) for row in rows[::HEIGHT]]
        bases = [T.bind(tile * (padded(self.k) * TILE)) for tile in tiles]
        for first in range(0, len(tiles), PAIR):
            pair = bases[first : first + PAIR]
            places = [
                [i * HEIGHT * width + (first + j) * TILE for j in range(len(pair))]
                for i in range(len(offsets))
            ]
            sum_up(self.x, offsets, stride, self.weight, pair, padded(self.k) // DEPTH, self.sums,
                   places, width)  # fmt: skip
        end_tiles()
