"""What every matrix product has around its inner loop: its blocks, and what follows the sum.

The output is cut into blocks of some rows by some tiles of 16 channels (blocks.py says who computes
which). A block's sums are left in a small buffer on the stack, the stage, from where the epilogue
takes them to the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.loops import store
from graphwright.backends.tvm.kernels.vector import activate, constant, span
from graphwright.backends.tvm.target import Cpu

__all__ = [
    "TILE",
    "Ahead",
    "Epilogue",
    "Tiling",
    "Tilings",
    "few_or_many",
    "few_rows",
    "lines_ahead",
    "pack_groups",
    "prefetch_ahead",
    "tilings_name",
    "write_block",
    "zeros",
]

TILE = 16  # output channels that lie side by side in packed weights
LONG_TILE = 8 << 10  # bytes of one from which it pays to read several side by side


@dataclass(frozen=True)
class Tiling:
    """Blocks are of `tiles` tiles by any of `rows` (descending): each has code of its own.

    abreast: tiles that are read side by side for a row that comes alone, with prefetches only if
    abreast_ahead.
    amx: blocks are summed up in tile registers.
    """

    rows: tuple[int, ...]
    tiles: int
    ahead: bool = True  # whether to prefetch weights
    abreast: int = 1
    abreast_ahead: bool = False
    amx: bool = False

    @property
    def stage_size(self) -> int:
        return self.rows[0] * self.tiles * TILE

    def alone(self, tile_bytes: int) -> Tiling | None:
        """The blocks of a row that comes alone, where it has others than the rest: with shorter
        tiles the hardware's prefetches do not get going. In shares of what one tile with prefetches
        reaches: 0.9 with tiles of 4.6 KB (w4), 1.1 of 9.2 (w8) to 18 KB (bf16, f32)."""
        if self.abreast == 1 or tile_bytes < LONG_TILE:
            return None
        return Tiling((1,), self.abreast, self.abreast_ahead)

    @property
    def name(self) -> str:
        """Rows x tiles of the largest block, an ``a`` where weights are prefetched, an ``m`` where
        tile registers hold the sums; tiles abreast: ``s``, how many, and an ``a`` likewise."""
        size = f"{self.rows[0]}x{self.tiles}{'a' * self.ahead}{'m' * self.amx}"
        return f"{size}s{self.abreast}{'a' * self.abreast_ahead}" if self.abreast > 1 else size


Ahead: TypeAlias = tuple[int, int]  # how many lines, into which cache
# For few rows, where memory is the limit, for many, where arithmetic is; up to where few (0: all
# are many).
Tilings: TypeAlias = tuple[Tiling, Tiling, int]


def tilings_name(tilings: Tilings | None, only_few: bool) -> str | None:
    """What a kernel's name says of tilings that are not its default ones."""
    if tilings is None:
        return None
    few, many, limit = tilings
    return few.name if only_few else f"{few.name}_{limit}_{many.name}"


@dataclass(frozen=True)
class Epilogue:
    """activation(sum + bias[n]) + residual[row * residual_stride + n]."""

    bias: bool = False
    activation: str | None = None
    residual_stride: int | None = None

    @property
    def pointers(self) -> list[tuple[str, str]]:
        names = ["bias"] * self.bias + ["residual"] * (self.residual_stride is not None)
        return [(name, "float32") for name in names]

    @property
    def parameters(self) -> dict[str, object]:
        """What kernel_name needs to know."""
        activation = None if self.activation == "none" else self.activation
        return {"bias": self.bias, "act": activation, "residual": self.residual_stride}

    def apply(self, value: Expr, row: Expr, n: Expr, lanes: int, operands: list[Expr]) -> Expr:
        """The finished value of `lanes` channels from `n` on; `operands`: what `pointers` lists."""
        remaining = list(operands)
        if self.bias:
            value = value + remaining.pop(0)[span(n, lanes)]
        value = activate(value, self.activation, lanes)
        if self.residual_stride is not None:
            index = tirx.Cast("int64", row) * self.residual_stride + n
            value = value + remaining.pop(0)[span(index, lanes)]
        return value


def pack_groups(values: np.ndarray) -> np.ndarray:
    """Scales or zero points [N, groups] -> [ceil(N/16), groups, 16], 0 behind the last channel."""
    n, groups = values.shape
    full = np.zeros((-(-n // TILE) * TILE, groups), values.dtype)
    full[:n] = values
    return np.ascontiguousarray(full.reshape(-1, TILE, groups).transpose(0, 2, 1))


def few_or_many(
    rows: Expr, limit: int, max_rows: int, few: Callable[[], None], many: Callable[[], None]
) -> None:
    """Emits `few` for calls of at most `limit` rows and, if there can be more, `many` for those."""
    if limit == 0 or max_rows <= limit:
        (few if limit else many)()
        return
    with T.If(rows <= limit):
        with T.Then():
            few()
        with T.Else():
            many()


def write_block(
    n: int,
    tiling: Tiling,
    epilogue: Epilogue,
    lanes: int,
    value: Callable[[Expr, Expr, Expr, Expr, int], Expr],
    operands: list[Expr],
    out: Expr,
    place: Callable[[Expr], Expr] = lambda row: row,
) -> Callable[[Expr, Expr, Expr], None]:
    """The `write` of for_each_block: epilogue and store of a staged block.

    `value(stage index, row, tile, lane, lanes)` gives the float32 sums. A last tile narrower than
    16 channels goes channel by channel. `place(row)`: the row of `out` (and of `value`'s and the
    epilogue's operands) that row belongs to.
    """
    tail, tiles = n % TILE, -(-n // TILE)

    def finish(row: Expr, tile: Expr, staged: Expr, lane: Expr, width: int) -> None:
        channel = tile * TILE + lane
        result = value(staged + lane, row, tile, lane, width)
        result = epilogue.apply(result, row, channel, width, operands)
        index = T.bind(tirx.Cast("int64", row) * n + channel)
        T.buffer_store(out, result, [span(index, width)])

    def whole(row: Expr, tile: Expr, staged: Expr) -> None:
        for lane in range(0, TILE, lanes):
            finish(row, tile, staged, lane, lanes)

    def write(first_row: Expr, count: Expr, first_tile: Expr) -> None:
        with T.serial(0, count) as i, T.serial(0, tiling.tiles) as j:
            row, tile = T.bind(place(first_row + i)), T.bind(first_tile + j)
            staged = T.bind((i * tiling.tiles + j) * TILE)
            with T.If(tile < n // TILE):
                with T.Then():
                    whole(row, tile, staged)
                if tail:
                    with T.Else(), T.If(tile < tiles), T.Then(), T.serial(0, tail) as lane:
                        finish(row, tile, staged, lane, 1)

    return write


def zeros(count: int, lanes: int, dtype: str = "float32") -> list[Expr]:
    """`count` registers that hold zeros."""
    total = registers(count, lanes, dtype)
    for register in total:
        store(register, 0, constant(0, lanes, dtype), lanes)
    return total


def prefetch_ahead(
    weight: Expr, bases: list[Expr], line: Expr, size: int, ahead: tuple[Ahead, ...]
) -> None:
    """Asks for cache lines of each tile that follow `line`; lines are `size` elements."""
    for base in bases:
        for lines, cache in ahead:
            place = T.address_of(weight[base + (line + lines) * size])
            hints = T.int32(0), T.int32(4 - cache), T.int32(1)
            T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", place, *hints))


def few_rows(cpu: Cpu) -> Tiling:
    """Of products of few rows by w8 or floats with 16 lanes; see lines_ahead for CPUs with AMX."""
    return Tiling((8, 4, 2, 1), 1, abreast=4 if cpu.amx else 1, abreast_ahead=cpu.amx)


def lines_ahead(rows: int, tiles: int, cpu: Cpu) -> tuple[Ahead, ...]:
    """What prefetch_ahead asks for beside a block of `rows` rows and `tiles` tiles.

    Up to 4 rows: 4 KB ahead into L1. More: 16 KB ahead into L2, as x fills L1. Zen 4, in shares of
    a read-only loop in the same run: 0.92 for 4 rows (0.67 without), 0.89 for 8 (0.40 without).

    CPUs with AMX, a row that comes alone with several tiles: into L2 and, nearer, into L1. Whole
    steps on a Xeon with AMX, in shares of the read probe, with four tiles, with four and no
    prefetches, with one tile: f16 0.94, 0.77, 0.76; bf16 0.94, 0.80, 0.90; w8 0.86, 0.79, 0.82.
    Up to two rows of one tile: 4 KB ahead into L2, 1.07 times as fast with w4 there.
    """
    if cpu.amx and rows == 1 and tiles > 1:
        return ((24, 2), (8, 1))
    if cpu.amx and rows <= 2:
        return ((64, 2),)
    return ((64, 1),) if rows <= 4 else ((256, 2),)
