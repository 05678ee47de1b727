"""The inner loop of products by weights in groups in AMX's tile registers, for many rows.

The int32 sums of a group leave the registers, are scaled and added to float32 sums, group by group
as without AMX. 4-bit weights of a block's channels become int8 once, for all of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.amx import (
    DEPTH,
    HEIGHT,
    begin_tiles,
    end_tiles,
    heights_of,
    sum_up,
)
from graphwright.backends.tvm.kernels.int4_dot import NIBBLE_LINE, UNIT, nibbles
from graphwright.backends.tvm.kernels.int8_dot import LINE
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.linear_w4 import LINES, SYMMETRIC_ZERO
from graphwright.backends.tvm.kernels.loops import load, spread, store
from graphwright.backends.tvm.kernels.matmul import TILE, Tiling
from graphwright.backends.tvm.kernels.quantize_rows import group_count, padded, row_size
from graphwright.backends.tvm.kernels.stage import stage
from graphwright.backends.tvm.kernels.vector import constant, fma, span, vector_type
from graphwright.ir.schemes import Scheme

__all__ = ["ProductGroupsAmx"]


@dataclass(frozen=True)
class ProductGroupsAmx:
    """The operands of a kernel, and the code that sums up one block of up to 32 rows."""

    x: Expr
    x_scale: Expr
    weight: Expr
    weight_scale: Expr
    weight_zero: Expr | None
    sums: Expr  # [row][tile][channel], float32, scaled
    exact: Expr  # [row][tile][channel], int32, of a group
    unpacked: Expr | None  # int8 [tile][line][channel][input] of the block's 4-bit weights
    k: int
    group: int

    @classmethod
    def staged(
        cls, scheme: Scheme, x: Expr, x_scale: Expr, weights: list[Expr], k: int, tiling: Tiling
    ) -> ProductGroupsAmx:
        """With buffers on the stack for blocks of `tiling`. weights: values, scales (zeros)."""
        assert scheme.group is not None
        weight, scale, *zero = weights
        sums, exact = stage(tiling.stage_size), stage(tiling.stage_size, "int32")
        unpacked = stage(tiling.tiles * padded(k) * TILE, "int8") if scheme.bits == 4 else None
        point = zero[0] if zero else None
        return cls(x, x_scale, weight, scale, point, sums, exact, unpacked, k, scheme.group)

    def begin(self, tiles: list[Expr]) -> None:
        """What comes before the blocks of `tiles`: unpacks their 4-bit weights."""
        if self.unpacked is None:
            return
        units, half = padded(self.k) // UNIT, LINES * LINE  # half: bytes of 32 unpacked inputs
        none = constant(SYMMETRIC_ZERO if self.weight_zero is None else 0, LINE, "int8")
        for i, tile in enumerate(tiles):
            base = T.bind(tile * (units * LINES * NIBBLE_LINE))
            with T.serial(0, units) as unit, T.serial(0, LINES) as line:
                at = T.bind(base + (unit * LINES + line) * NIBBLE_LINE)
                packed = T.bind(load(self.weight, at, NIBBLE_LINE))
                to = T.bind(i * padded(self.k) * TILE + unit * (2 * half) + line * LINE)
                for high in (False, True):
                    signed = tirx.reinterpret(f"int8x{LINE}", nibbles(packed, NIBBLE_LINE, high))
                    store(self.unpacked, to + high * half, signed - none, LINE)

    def multiply(self, rows: list[Expr], tiles: list[Expr]) -> None:
        """Sums up the block of these row and tile numbers into `sums`.

        Row numbers follow each other, but that those behind the last row repeat it.
        """
        stride, width, depth = row_size(self.k, self.group), len(tiles) * TILE, self._depth
        begin_tiles(heights_of(rows), depth)
        count = T.bind(rows[-1] - rows[0] + 1)
        offsets = [T.bind(row * stride) for row in rows[::HEIGHT]]
        lines, begins = self._lines(tiles)
        places = [
            [i * HEIGHT * width + j * TILE for j in range(len(tiles))] for i in range(len(offsets))
        ]

        def add_group(number: Expr, first: bool) -> None:
            starts = [T.bind(offset + number * self.group) for offset in offsets]
            bases = [T.bind(each + number * (self.group * TILE)) for each in begins]
            sum_up(self.x, starts, stride, lines, bases, self.group // depth, self.exact, places,
                   width, depth)  # fmt: skip
            self._scale(rows[0], count, tiles, number, first)

        add_group(T.int32(0), True)
        with T.serial(1, group_count(self.k, self.group)) as number:
            add_group(number, False)
        end_tiles()

    def value(self, at: Expr, row: Expr, tile: Expr, lane: Expr, lanes: int) -> Expr:
        """The float32 product of `lanes` channels whose sums are at `at`; for write_block."""
        return load(self.sums, at, lanes)

    def _lines(self, tiles: list[Expr]) -> tuple[Expr, list[Expr]]:
        """The lines of int8 weights, and where those of each tile begin."""
        size = padded(self.k) * TILE
        if self.unpacked is None:
            return self.weight, [T.bind(tile * size) for tile in tiles]
        return self.unpacked, [T.int32(i * size) for i in range(len(tiles))]

    def _scale(
        self, first_row: Expr, count: Expr, tiles: list[Expr], number: Expr, first: bool
    ) -> None:
        """sums += (exact - zero * Σ x) * x_scale * weight_scale of group `number`, the `first`?"""
        groups = group_count(self.k, self.group)
        real, integer = vector_type("float32", TILE), vector_type("int32", TILE)
        at = [span((tile * groups + number) * TILE, TILE) for tile in tiles]
        scales = [T.bind(tirx.Cast(real, self.weight_scale[each])) for each in at]
        points: list[Expr] = []
        if self.weight_zero is not None:
            points = [T.bind(tirx.Cast(integer, self.weight_zero[each])) for each in at]
        with T.serial(0, count) as i:
            row = T.bind(first_row + i)
            x_scale = T.bind(spread(self.x_scale[row * groups + number], TILE))
            if points:
                begin = row * row_size(self.k, self.group) + padded(self.k) + number * 4
                x_sum = T.bind(spread(tirx.reinterpret("int32", self.x[span(begin, 4)]), TILE))
            for j, scale in enumerate(scales):
                place = T.bind((i * len(tiles) + j) * TILE)
                exact = load(self.exact, place, TILE)
                if points:
                    exact = exact - points[j] * x_sum
                before = constant(0.0, TILE) if first else load(self.sums, place, TILE)
                scaled = tirx.Cast(real, exact) * x_scale
                store(self.sums, place, fma(scaled, scale, before, TILE), TILE)

    @property
    def _depth(self) -> int:
        """Input channels of a turn: those of a group, if registers hold more."""
        return min(DEPTH, self.group)
