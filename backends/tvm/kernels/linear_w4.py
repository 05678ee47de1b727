"""The inner loop of products by 4-bit weights in groups: exact int32 sums of each group, scaled.

Packed weights are tiles of 16 output channels, uint8 [ceil(N/16), K'/64, 8, 16, 4] with K' = K
padded to 64: the lines of int4_dot.py, eight for each 64 input channels. Stored nibbles are
unsigned: q + 8 for symmetric schemes. Scales are float16 and zero points uint8, both [ceil(N/16),
K/G, 16]. One layout serves decode and prefill on every CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.int4_dot import (
    NIBBLE_LINE,
    RUN,
    UNIT,
    NibbleDot,
    nibble_dot_for,
)
from graphwright.backends.tvm.kernels.int8_dot import QUAD
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.loops import load, settle, spread, store
from graphwright.backends.tvm.kernels.matmul import TILE, Tiling, prefetch_ahead, stage, zeros
from graphwright.backends.tvm.kernels.quantize_rows import group_count, padded, row_size
from graphwright.backends.tvm.kernels.vector import constant, fma, vector_type
from graphwright.backends.tvm.target import Cpu

__all__ = ["SYMMETRIC_ZERO", "ProductW4", "pack_w4", "pack_w4_rows", "w4_tilings"]

LINES = UNIT // (2 * QUAD)  # of a tile, for UNIT input channels
MORE_THREADS_THAN_EVER = 1 << 16  # the runtime allows 512
SYMMETRIC_ZERO = 8  # the nibble of a weight of 0


def pack_w4(q: np.ndarray, zero_point: bool) -> np.ndarray:
    """int8 [N, K] -> uint8 [ceil(N/16), K'/64, 8, 16, 4]; values -8..7, or 0..15 if `zero_point`.

    Channels behind the last one and inputs behind K are zero.
    """
    n, k = q.shape
    tiles, units = -(-n // TILE), padded(k) // UNIT
    nibbles = np.zeros((tiles * TILE, units * UNIT), np.uint8)
    nibbles[:n, :k] = q if zero_point else q + SYMMETRIC_ZERO
    split = nibbles.reshape(tiles, TILE, units, 2, LINES, QUAD).transpose(3, 0, 2, 4, 1, 5)
    return np.ascontiguousarray(split[0] | split[1] << 4)


def pack_w4_rows(q: np.ndarray, zero_point: bool) -> np.ndarray:
    """int8 [V, K] -> uint8 [V, K'/64, 32]: of each 64 inputs the first 32 in the low nibbles."""
    rows, k = q.shape
    nibbles = np.zeros((rows, padded(k)), np.uint8)
    nibbles[:, :k] = q if zero_point else q + SYMMETRIC_ZERO
    split = nibbles.reshape(rows, -1, 2, RUN)
    return np.ascontiguousarray(split[:, :, 0] | split[:, :, 1] << 4)


def w4_tilings(cpu: Cpu) -> tuple[Tiling, Tiling, int]:
    """For few rows, where memory is the limit, for many, where arithmetic is; up to where few."""
    if cpu.vnni and cpu.lanes == 16:
        return Tiling((8, 4, 2, 1), 1), Tiling((4, 2), 4, ahead=False), 8
    return Tiling((4, 2, 1), 1), Tiling((4, 2, 1), 1, ahead=False), 16


@dataclass(frozen=True)
class ProductW4:
    """The operands of a kernel, and the code that sums up one block of them."""

    x: Expr
    x_scale: Expr
    weight: Expr
    weight_scale: Expr
    weight_zero: Expr | None
    sums: Expr  # [row][tile][channel], float32, scaled
    k: int
    group: int
    dot: NibbleDot
    ahead: bool  # whether to prefetch weights
    lines: Expr  # LINES, as a number without a bound that LLVM could know

    @classmethod
    def staged(
        cls, x: Expr, x_scale: Expr, weights: list[Expr], k: int, group: int, tiling: Tiling,
        cpu: Cpu, threads: Expr,
    ) -> ProductW4:  # fmt: skip
        """With a buffer on the stack for blocks of `tiling`. weights: values, scales (zeros).

        Given the loop over the lines of a run with a constant bound, LLVM unrolls it and then keeps
        broadcast activations for later in memory: 2.5 times slower with AVX2.
        """
        weight, scale, *zero = weights
        sums, dot = stage(tiling.stage_size), nibble_dot_for(cpu)
        lines = settle(tirx.max(threads - MORE_THREADS_THAN_EVER, LINES), "int32")
        return cls(
            x, x_scale, weight, scale, zero[0] if zero else None, sums, k, group, dot,
            tiling.ahead, lines,
        )  # fmt: skip

    def begin(self, tiles: list[Expr]) -> None:
        """Nothing comes before the blocks of `tiles`."""

    def multiply(self, rows: list[Expr], tiles: list[Expr]) -> None:
        """Sums up the block of these row and tile numbers into `sums`."""
        lanes = self.dot.lanes
        stride = row_size(self.k, self.group)
        offsets = [T.bind(row * stride) for row in rows]
        bases = [T.bind(tile * (padded(self.k) // UNIT * LINES * NIBBLE_LINE)) for tile in tiles]
        total = zeros(len(rows) * len(tiles) * (TILE // lanes), lanes)
        runs = max(UNIT, self.group) // RUN
        length = runs * RUN  # input channels of one turn of the loop

        def turn(first: Expr, runs: int) -> None:
            """`runs` runs from number `first` on, which starts a unit."""
            sums: list[Expr] = []
            for run in range(runs):
                found = self._run(offsets, bases, first, run)
                sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
                if (run + 1) * RUN % self.group == 0:
                    number = T.bind(first * RUN // self.group + run * RUN // self.group)
                    self._scale(rows, offsets, tiles, number, sums, total)
                    sums = []

        with T.serial(0, self.k // length) as i:
            turn(T.bind(i * runs), runs)
        if self.k % length:
            turn(T.int32(self.k // length * runs), self.k % length // RUN)
        for i, register in enumerate(total):
            store(self.sums, i * lanes, load(register, 0, lanes), lanes)

    def value(self, at: Expr, row: Expr, tile: Expr, lane: Expr, lanes: int) -> Expr:
        """The float32 product of `lanes` channels whose sums are at `at`; for write_block."""
        return load(self.sums, at, lanes)

    def _run(self, offsets: list[Expr], bases: list[Expr], first: Expr, run: int) -> list[Expr]:
        """The int32 sums over run first + run, for each row and vector of channels."""
        dot, high = self.dot, run % 2 == 1
        dtype, lanes = dot.partial
        vectors = list(self._vectors(bases))
        partial = zeros(len(offsets) * len(vectors), lanes, dtype)
        line = T.bind((first + run // 2 * 2) * (LINES // 2))

        def step(number: Expr) -> None:
            if self.ahead and not high:
                prefetch_ahead(self.weight, bases, line + number, NIBBLE_LINE, len(offsets))
            at = T.bind((line + number) * NIBBLE_LINE)
            weights = [
                dot.weights(self.weight, base + at + part * QUAD, high) for base, part in vectors
            ]
            left = iter(partial)
            for offset in offsets:
                quad = dot.activations(self.x, offset + ((first + run) * RUN + number * QUAD))
                for each in weights:
                    register = next(left)
                    store(register, 0, dot.add(load(register, 0, lanes), each, quad), lanes)

        with T.serial(0, self.lines) as number:
            step(number)
        return [dot.fold(load(register, 0, lanes)) for register in partial]

    def _scale(
        self, rows: list[Expr], offsets: list[Expr], tiles: list[Expr], number: Expr,
        sums: list[Expr], total: list[Expr],
    ) -> None:  # fmt: skip
        """total += (sums - zero * Σ x) * x_scale * weight_scale of group `number`."""
        lanes, groups = self.dot.lanes, group_count(self.k, self.group)
        real, integer = vector_type("float32", lanes), vector_type("int32", lanes)
        places = [
            T.bind((tile * groups + number) * TILE + part) for tile, part in self._vectors(tiles)
        ]
        scales = [T.bind(tirx.Cast(real, load(self.weight_scale, at, lanes))) for at in places]
        points = None
        if self.weight_zero is not None:
            found = (load(self.weight_zero, at, lanes) for at in places)
            points = [T.bind(tirx.Cast(integer, each)) for each in found]
        left, registers_left = iter(sums), iter(total)
        for row, offset in zip(rows, offsets, strict=True):
            x_scale = T.bind(spread(self.x_scale[row * groups + number], lanes))
            at = offset + padded(self.k) + number * 4
            x_sum = tirx.reinterpret("int32", self.x[T.ramp(at, 1, 4)])
            x_sum = (
                T.bind(spread(x_sum, lanes) * constant(-1, lanes, "int32"))
                if points
                else (T.bind(spread(x_sum * -SYMMETRIC_ZERO, lanes)))
            )
            for i, scale in enumerate(scales):
                register = next(registers_left)
                exact = next(left) + (x_sum * points[i] if points else x_sum)
                scaled = tirx.Cast(real, exact) * x_scale
                store(register, 0, fma(scaled, scale, load(register, 0, lanes), lanes), lanes)

    def _vectors(self, tiles: list[Expr]) -> Iterator[tuple[Expr, int]]:
        """(what is in `tiles`, first channel of a vector in the tile)."""
        return ((each, part) for each in tiles for part in range(0, TILE, self.dot.lanes))
