"""The inner loop of products by 4-bit weights in groups: exact int32 sums of each group, scaled.

Packed weights are tiles of 16 output channels, uint8 [ceil(N/16), K'/64, 8, 16, 4] with K' = K
padded to 64: the lines of int4_dot.py, eight for each 64 input channels. Stored nibbles are
unsigned: q + 8 for symmetric schemes. Scales are float16 and zero points uint8, both [ceil(N/16),
K/G, 16]. One layout serves decode and prefill on every CPU.
"""

from __future__ import annotations

import itertools
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
from graphwright.backends.tvm.kernels.loops import load, spread, store, vector_loop
from graphwright.backends.tvm.kernels.matmul import (
    TILE,
    Tiling,
    lines_ahead,
    prefetch_ahead,
    zeros,
)
from graphwright.backends.tvm.kernels.quantize_rows import group_count, padded, row_size
from graphwright.backends.tvm.kernels.stage import stage
from graphwright.backends.tvm.kernels.sums import Sums, unknown
from graphwright.backends.tvm.kernels.vector import constant, fma, span, vector_type
from graphwright.backends.tvm.target import Cpu

__all__ = ["LINES", "SYMMETRIC_ZERO", "ProductW4", "pack_w4", "pack_w4_rows", "w4_tilings"]

LINES = UNIT // (2 * QUAD)  # of a tile, for UNIT input channels
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


def w4_tilings(cpu: Cpu, gathered: bool) -> tuple[Tiling, Tiling, int]:
    """For few rows, where memory is the limit, for many, where arithmetic is; up to where few.

    gathered: rows of activations do not follow each other, as AMX wants them.
    """
    if cpu.amx and not gathered:
        return Tiling((8, 4, 2, 1), 1), Tiling((32, 16), 2, ahead=False, amx=True), 8
    if cpu.vnni and cpu.lanes == 16:
        return Tiling((8, 4, 2, 1), 1), Tiling((4, 2), 4, ahead=False), 8
    if not nibble_dot_for(cpu).crowded:
        return Tiling((4, 2, 1), 1), Tiling((4, 2, 1), 1, ahead=False), 16
    return Tiling((8, 6, 4, 2, 1), 1, abreast=4), Tiling((5, 3, 1), 1, ahead=False), 16


@dataclass(frozen=True)
class Block:
    """Rows by vectors of channels: (tile, where it starts in the weights, first channel in it)."""

    rows: list[Expr]
    offsets: list[Expr]  # of each row in the quantized activations
    vectors: list[tuple[Expr, Expr, int]]
    total: Sums  # [row][vector], float32, scaled
    exact: Sums  # int32, of a group of several runs


@dataclass(frozen=True)
class ProductW4:
    """The operands of a kernel, and the code that sums up one block of them."""

    x: Expr
    x_scale: Expr
    weight: Expr
    weight_scale: Expr
    weight_zero: Expr | None
    sums: Sums  # [row][tile][channel], float32, scaled
    exact: Sums | None  # int32, where they cannot stay in registers
    starts: Expr | None  # int32 [row][group], what partial sums start from
    k: int
    group: int
    dot: NibbleDot
    ahead: bool  # whether to prefetch weights
    cpu: Cpu
    lines: Expr  # LINES, as a number without a bound that LLVM could know

    @classmethod
    def staged(
        cls, x: Expr, x_scale: Expr, weights: list[Expr], k: int, group: int, tiling: Tiling,
        cpu: Cpu, threads: Expr,
    ) -> ProductW4:  # fmt: skip
        """With buffers on the stack for blocks of `tiling`. weights: values, scales (zeros).

        Given the loop over the lines of a run with a constant bound, LLVM unrolls it and then keeps
        broadcast activations for later in memory: 2.5 times slower with AVX2.
        """
        weight, scale, *zero = weights
        dot = nibble_dot_for(cpu)
        count = tiling.stage_size // dot.lanes
        sums = Sums.in_memory(count, dot.lanes, threads)
        exact = starts = None
        if dot.crowded and group > RUN:
            exact = Sums.in_memory(count, dot.lanes, threads, "int32")
        if dot.crowded and group == RUN and not zero:
            starts = stage(tiling.rows[0] * group_count(k, group), "int32")
        return cls(
            x, x_scale, weight, scale, zero[0] if zero else None, sums, exact, starts, k, group,
            dot, tiling.ahead, cpu, unknown(LINES, threads),
        )  # fmt: skip

    def begin(self, tiles: list[Expr]) -> None:
        """Nothing comes before the blocks of `tiles`."""

    def multiply(self, rows: list[Expr], tiles: list[Expr]) -> None:
        """Sums up the block of these row and tile numbers into `sums`.

        Run by run, and in each with as many rows at once as leave their partial sums in registers:
        weights then come from memory evenly, and from the cache for the other rows.
        """
        block = self._block(rows, tiles)
        self._prepare_starts(block)
        runs = max(UNIT, self.group) // RUN
        length = runs * RUN  # input channels of one turn of the loop
        vectors = len(block.vectors)
        pieces = _pieces(len(rows), self.dot.most_partial // vectors)

        def turn(first: Expr, runs: int) -> None:
            """`runs` runs from number `first` on, which starts a unit."""
            for run in range(runs):
                for piece in pieces:
                    self._run(block, piece, first, run)

        with T.serial(0, self.k // length) as i:
            turn(T.bind(i * runs), runs)
        if self.k % length:
            turn(T.int32(self.k // length * runs), self.k % length // RUN)
        if not self.dot.crowded:
            for i in range(len(rows) * vectors):
                self.sums.put(i, block.total.get(i))

    def value(self, at: Expr, row: Expr, tile: Expr, lane: Expr, lanes: int) -> Expr:
        """The float32 product of `lanes` channels whose sums are at `at`; for write_block."""
        return load(self.sums.places[0][0], at, lanes)

    def _block(self, rows: list[Expr], tiles: list[Expr]) -> Block:
        lanes, stride = self.dot.lanes, row_size(self.k, self.group)
        offsets = [T.bind(row * stride) for row in rows]
        bases = [T.bind(tile * (padded(self.k) // UNIT * LINES * NIBBLE_LINE)) for tile in tiles]
        vectors = [
            (tile, base, part)
            for tile, base in zip(tiles, bases, strict=True)
            for part in range(0, TILE, lanes)
        ]
        count = len(rows) * len(vectors)
        if not self.dot.crowded:
            total, exact = (Sums.in_registers(count, lanes, t) for t in ("float32", "int32"))
            return Block(rows, offsets, vectors, total, exact)
        for i in range(count):
            self.sums.put(i, constant(0.0, lanes))
        return Block(rows, offsets, vectors, self.sums, self.exact or self.sums)

    def _prepare_starts(self, block: Block) -> None:
        """Fills `starts`: PairNibbleDot's partial sums may start from -8 * Σ x of the run."""
        if self.starts is None:
            return
        groups = group_count(self.k, self.group)
        for r, offset in enumerate(block.offsets):
            found = T.bind(offset + padded(self.k))

            def prepare(first: Expr, lanes: int, r: int = r, found: Expr = found) -> None:
                integer = vector_type("int32", lanes)
                sums = tirx.reinterpret(integer, self.x[span(found + first * 4, lanes * 4)])
                start = self.dot.start(sums * constant(-SYMMETRIC_ZERO, lanes, "int32"), lanes)
                store(self.starts, r * groups + first, start, lanes)

            vector_loop(groups, self.dot.lanes, prepare)

    def _run(self, block: Block, piece: range, first: Expr, run: int) -> None:
        """Adds run first + run, for the rows of `piece`."""
        count, (dtype, lanes) = len(block.vectors), self.dot.partial
        number = T.bind(first * RUN // self.group + run * RUN // self.group)
        partial = zeros(len(piece) * count, lanes, dtype)
        if self.starts is not None:
            for i, r in enumerate(piece):
                start = self.starts[r * group_count(self.k, self.group) + number]
                start = tirx.reinterpret(f"{dtype}x{lanes}", spread(start, self.dot.lanes))
                for register in partial[i * count : (i + 1) * count]:
                    store(register, 0, start, lanes)
        line = T.bind((first + run // 2 * 2) * (LINES // 2))
        with T.serial(0, self.lines) as i:
            at = (first + run) * RUN + i * QUAD
            self._step(block, piece, partial, line + i, at, run % 2 == 1)

        found = [self.dot.fold(load(register, 0, lanes)) for register in partial]
        begins, ends = run * RUN % self.group == 0, (run + 1) * RUN % self.group == 0
        places = range(piece.start * count, piece.stop * count)
        if not begins:
            found = [block.exact.get(i) + each for i, each in zip(places, found, strict=True)]
        if ends:
            self._scale(block, piece, number, found)
            block.total.stay()
        else:
            for i, each in zip(places, found, strict=True):
                block.exact.put(i, each)
            block.exact.stay()

    def _step(
        self, block: Block, piece: range, partial: list[Expr], line: Expr, first: Expr, high: bool
    ) -> None:
        """Adds the products of half a line and of the activations from `first` on."""
        dot, (_, lanes) = self.dot, self.dot.partial
        if self.ahead and not high and piece.start == 0:
            bases = [base for _, base, channel in block.vectors if channel == 0]
            lines = lines_ahead(len(block.rows), len(bases), self.cpu)
            prefetch_ahead(self.weight, bases, line, NIBBLE_LINE, lines)
        at = T.bind(line * NIBBLE_LINE)
        weights = [
            dot.weights(self.weight, base + at + channel * QUAD, high)
            for _, base, channel in block.vectors
        ]
        left = iter(partial)
        for r in piece:
            quad = dot.activations(self.x, block.offsets[r] + first)
            for each in weights:
                register = next(left)
                store(register, 0, dot.add(load(register, 0, lanes), each, quad), lanes)

    def _scale(self, block: Block, piece: range, number: Expr, found: list[Expr]) -> None:
        """total += (found - zero * Σ x) * x_scale * weight_scale of group `number`."""
        lanes, groups = self.dot.lanes, group_count(self.k, self.group)
        real, integer = vector_type("float32", lanes), vector_type("int32", lanes)
        places = [
            T.bind((tile * groups + number) * TILE + channel) for tile, _, channel in block.vectors
        ]
        scales = [T.bind(tirx.Cast(real, load(self.weight_scale, at, lanes))) for at in places]
        points: list[Expr] = []
        if self.weight_zero is not None:
            loaded = (load(self.weight_zero, at, lanes) for at in places)
            points = [T.bind(tirx.Cast(integer, each)) for each in loaded]
        left, sums = iter(found), iter(range(piece.start * len(scales), piece.stop * len(scales)))
        for r in piece:
            x_scale = T.bind(spread(self.x_scale[block.rows[r] * groups + number], lanes))
            x_sum = None if self.starts is not None else self._x_sum(block.offsets[r], number)
            for v, scale in enumerate(scales):
                exact, i = next(left), next(sums)
                if points:
                    exact = exact - self.dot.zeros(points[v], x_sum)
                elif x_sum is not None:
                    exact = exact + x_sum
                scaled = tirx.Cast(real, exact) * x_scale
                block.total.put(i, fma(scaled, scale, block.total.get(i), lanes))

    def _x_sum(self, offset: Expr, number: Expr) -> Expr:
        """Σ x of a group if there are zero points, else what corrects the fixed one: -8 * Σ x."""
        at = offset + padded(self.k) + number * 4
        x_sum = tirx.reinterpret("int32", self.x[T.ramp(at, 1, 4)])
        if self.weight_zero is None:
            x_sum = x_sum * -SYMMETRIC_ZERO
        return T.bind(spread(x_sum, self.dot.lanes))


def _pieces(rows: int, most: int) -> list[range]:
    """`rows` rows in pieces of at most `most`, as few as possible and nearly equal."""
    count = -(-rows // max(1, most))
    bounds = [rows * i // count for i in range(count + 1)]
    return [range(first, last) for first, last in itertools.pairwise(bounds)]
