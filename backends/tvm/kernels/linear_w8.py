"""The inner loop of products by 8-bit weights: int8 times int8 with exact int32 sums.

Packed weights are tiles of 16 output channels by 4 input channels, int8 [ceil(N/16), K'/4, 16, 4]
with K' = K padded to 64: a cache line for each 4 input channels is one operand of AVX-512's
vpdpbusd and two of AVX2's vpmaddubsw. Scales are float32 [ceil(N/16), K/G or 1, 16]. One layout
serves decode and prefill on every CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.int8_dot import LINE, QUAD, Dot, dot_for
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.loops import load, spread, store, unrolled
from graphwright.backends.tvm.kernels.matmul import (
    TILE,
    Ahead,
    Tiling,
    few_rows,
    lines_ahead,
    prefetch_ahead,
    zeros,
)
from graphwright.backends.tvm.kernels.quantize_rows import group_count, padded, row_size
from graphwright.backends.tvm.kernels.stage import stage
from graphwright.backends.tvm.kernels.vector import constant, fma, span, vector_type
from graphwright.backends.tvm.target import Cpu

__all__ = ["ProductW8", "pack_w8", "w8_tilings"]


def pack_w8(q: np.ndarray) -> np.ndarray:
    """int8 [N, K] -> int8 [ceil(N/16), K'/4, 16, 4], zero behind the last channel and input."""
    n, k = q.shape
    tiles = -(-n // TILE)
    weights = np.zeros((tiles * TILE, padded(k)), np.int8)
    weights[:n, :k] = q
    return np.ascontiguousarray(weights.reshape(tiles, TILE, -1, QUAD).transpose(0, 2, 1, 3))


def w8_tilings(cpu: Cpu, grouped: bool, gathered: bool) -> tuple[Tiling, Tiling, int]:
    """For few rows, where memory is the limit, for many, where arithmetic is, and up to where few.

    With groups, each sum needs a float32 register as well: smaller blocks, no slots for prefetches.
    gathered: rows of activations do not follow each other, as AMX wants them.
    """
    if not (cpu.vnni and cpu.lanes == 16):
        return Tiling((4, 2, 1), 1, abreast=4), Tiling((4, 2, 1), 1), 16
    if cpu.amx and not gathered:
        many = Tiling((32, 16), 2 if grouped else 8, ahead=False, amx=True)
    else:
        many = Tiling((4, 2), 4, ahead=False) if grouped else Tiling((8, 4, 2), 2)
    return few_rows(cpu), many, 8


@dataclass(frozen=True)
class ProductW8:
    """The operands of a kernel, and the code that sums up one block of them."""

    x: Expr
    x_scale: Expr
    weight: Expr
    weight_scale: Expr
    sums: Expr  # [row][tile][channel]: int32 without groups, scaled float32 with
    starts: Expr | None  # int32 [group][tile][channel] if dot.starts_from_channels
    k: int
    group: int | None
    dot: Dot
    ahead: bool  # whether to prefetch weights
    cpu: Cpu

    @classmethod
    def staged(
        cls, x: Expr, x_scale: Expr, weights: list[Expr], k: int, group: int | None,
        tiling: Tiling, cpu: Cpu, many_rows: bool,
    ) -> ProductW8:  # fmt: skip
        """With buffers on the stack for blocks of `tiling`. weights: values and scales."""
        (weight, weight_scale), dot = weights, dot_for(cpu, many_rows)
        sums, starts = stage(tiling.stage_size, "float32" if group else "int32"), None
        if dot.starts_from_channels:
            starts = stage(group_count(k, group) * tiling.tiles * TILE, "int32")
        return cls(x, x_scale, weight, weight_scale, sums, starts, k, group, dot, tiling.ahead, cpu)

    def begin(self, tiles: list[Expr]) -> None:
        """What comes before the blocks of `tiles`: fills `starts`, where the dot needs them."""
        if self.starts is None:
            return
        lanes, bases = self.dot.lanes, self._bases(tiles)
        count = len(tiles) * TILE // lanes
        with T.serial(0, group_count(self.k, self.group)) as number:
            total = zeros(count, lanes, "int32")

            def step(i: Expr, u: int) -> None:
                line = T.bind(number * self._lines + i)
                prefetch_ahead(self.weight, bases, line, LINE, self._ahead(1, len(bases)))
                weights = self._weights(bases, line)
                for register, each in zip(total, weights, strict=True):
                    value = load(register, 0, lanes)
                    store(register, 0, self.dot.negatives(value, each), lanes)

            unrolled(self._lines, 1, step)
            for i, register in enumerate(total):
                at = (number * count + i) * lanes
                store(self.starts, at, load(register, 0, lanes), lanes)

    def multiply(self, rows: list[Expr], tiles: list[Expr]) -> None:
        """Sums up the block of these row and tile numbers into `sums`."""
        stride = row_size(self.k, self.group)
        offsets = [T.bind(row * stride) for row in rows]
        total = (
            self._grouped(rows, offsets, tiles)
            if self.group
            else self._dots(offsets, self._bases(tiles), 0)
        )
        for i, value in enumerate(total):
            store(self.sums, i * self.dot.lanes, value, self.dot.lanes)

    def value(self, at: Expr, row: Expr, tile: Expr, lane: Expr, lanes: int) -> Expr:
        """The float32 product of `lanes` channels whose sums are at `at`; for write_block."""
        if self.group:
            return load(self.sums, at, lanes)
        exact = tirx.Cast(vector_type("float32", lanes), load(self.sums, at, lanes))
        scale = load(self.weight_scale, tile * TILE + lane, lanes)
        return exact * spread(self.x_scale[row], lanes) * scale

    def _grouped(self, rows: list[Expr], offsets: list[Expr], tiles: list[Expr]) -> list[Expr]:
        """Σ over groups of dot * x_scale * weight_scale, for each row and vector of channels."""
        lanes, groups = self.dot.lanes, group_count(self.k, self.group)
        real, bases = vector_type("float32", lanes), self._bases(tiles)
        parts = [(tile, part) for tile in tiles for part in range(0, TILE, lanes)]
        total = zeros(len(rows) * len(parts), lanes)
        with T.serial(0, groups) as number:
            dots = iter(self._dots(offsets, bases, number))
            scales = [
                T.bind(self.weight_scale[span((tile * groups + number) * TILE + part, lanes)])
                for tile, part in parts
            ]
            registers_left = iter(total)
            for row in rows:
                x_scale = T.bind(spread(self.x_scale[row * groups + number], lanes))
                for scale in scales:
                    register = next(registers_left)
                    scaled = tirx.Cast(real, next(dots)) * x_scale
                    store(register, 0, fma(scaled, scale, load(register, 0, lanes), lanes), lanes)
        return [load(register, 0, lanes) for register in total]

    def _dots(self, offsets: list[Expr], bases: list[Expr], number: Expr) -> list[Expr]:
        """The int32 sums of group `number`, for each row and vector of channels.

        Where there are few, several chains of additions hide the latency of one.
        """
        dot, lanes = self.dot, self.dot.lanes
        starts = self._starts(offsets, len(bases) * TILE // lanes, number)
        count = 1 if self.group else max(1, 8 // len(starts))
        chains = [zeros(len(starts), lanes, "int32") for _ in range(count)]
        for register, start in zip(chains[0], starts, strict=True):
            store(register, 0, start, lanes)

        def step(i: Expr, u: int) -> None:
            line = T.bind(number * self._lines + i)
            if self.ahead:
                lines = self._ahead(len(offsets), len(bases))
                prefetch_ahead(self.weight, bases, line, LINE, lines)
            weights = self._weights(bases, line)
            registers_left = iter(chains[u % len(chains)])
            for offset in offsets:
                quad = dot.activations(self.x, offset + line * QUAD)
                for each in weights:
                    register = next(registers_left)
                    value = load(register, 0, lanes)
                    store(register, 0, dot.add(value, each, quad), lanes)

        unrolled(self._lines, max(len(chains), dot.unroll), step)
        return [
            sum((load(register, 0, lanes) for register in rest), load(first, 0, lanes))
            for first, *rest in zip(*chains, strict=True)
        ]

    def _starts(self, offsets: list[Expr], vectors: int, number: Expr) -> list[Expr]:
        """What the sums of group `number` start from, for each row and vector of channels."""
        lanes = self.dot.lanes
        if self.starts is not None:
            at = [span((number * vectors + i) * lanes, lanes) for i in range(vectors)]
            return [self.starts[each] for each in at] * len(offsets)
        if not self.dot.starts_from_rows:
            return [constant(0, lanes, "int32")] * (vectors * len(offsets))
        result = []
        for offset in offsets:
            total = tirx.reinterpret("int32", self.x[span(offset + padded(self.k) + number * 4, 4)])
            result += [T.bind(spread(total * -128, lanes))] * vectors
        return result

    def _ahead(self, rows: int, tiles: int) -> tuple[Ahead, ...]:
        """Lines to prefetch. A single tile with AMX: further than others, and twice."""
        if self.cpu.amx and tiles == 1:
            return ((96, 2), (8, 1))
        return lines_ahead(rows, tiles, self.cpu)

    @property
    def _lines(self) -> int:
        """Lines of a tile in one group."""
        return -(-(self.group or self.k) // QUAD)

    def _bases(self, tiles: list[Expr]) -> list[Expr]:
        return [T.bind(tile * (padded(self.k) * TILE)) for tile in tiles]

    def _weights(self, bases: list[Expr], line: Expr) -> list[Any]:
        return [
            self.dot.weights(self.weight, base + line * LINE + part * QUAD)
            for base in bases
            for part in range(0, TILE, self.dot.lanes)
        ]
