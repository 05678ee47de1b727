"""Matrix products of many rows or few, by weights of any format, with their epilogue.

`linear` picks tiles by the bucket's rows. Up to 32 rows, decode, a product reads the weights once
and is bound by those bytes: tiles of 64 outputs, and the inputs split over enough programs to keep
all multiprocessors loading; the last program of a tile adds the parts in their order. From 64 rows
on it is bound by the tensor cores: tiles of 128 x 128 make 64 FLOP for each byte that they read
from the L2 cache, and programs of the same weights run side by side, so that weights are read from
memory once. Integer weights become floats in registers, at 3 to 4 operations each, which 128 rows
use 128 times.

The meaning of integer weights here is x · dequantized weight: activations stay floats. With
`integer`, activations are int8 and sums exact, as gw.quantized_linear says: for artifacts that must
equal their reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.epilogue import (
    finish_constants,
    finish_in_pieces,
    is_last,
    weight_rows,
)
from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.product_tile import product_tile
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.kernels.turned_heads import (
    TurnedHeads,
    turn_inputs,
    turn_results,
)
from graphwright.backends.triton.kernels.weight_format import CHUNK, WeightFormat

__all__ = ["Tiles", "linear", "most_splits", "tiles_for"]


@dataclass(frozen=True)
class Tiles:
    """outputs x rows of a tile, inputs in a step, parts of the inputs."""

    outputs: int
    rows: int
    step: int
    splits: int = 1
    num_warps: int = 4
    num_stages: int = 3

    def scratch_bytes(self, rows: int, n: int) -> tuple[int, int]:
        """Sizes of `partial` and `counters` for so many rows and sums; (0, 0) without splits."""
        if self.splits == 1:
            return 0, 0
        tiles = quotient_up(rows, self.rows) * quotient_up(n, self.outputs)
        return 4 * tiles * self.splits * self.rows * (self.outputs + 1), 4 * tiles


@triton.jit
def linear_kernel(
    batch, x, x_scales, weight, scale, zero, norm, bias, residual, cos, sin, slots, partial,
    counters, out, k_cache, v_cache, N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, ROW: tl.constexpr, X_STRIDE: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    TURN: tl.constexpr, EPS: tl.constexpr, COUNT: tl.constexpr, PRESCALE: tl.constexpr,
    SPLITS: tl.constexpr, PART: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    rows = tl.load(batch + COUNT)
    tile, outputs, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if tile * ROWS >= rows:
        return
    row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    row_inside = row < rows
    n, n_inside = weight_rows(outputs * OUTPUTS, N, GATE, UP, TURN, OUTPUTS)
    first = split * PART
    last = tl.minimum(first + PART, K)
    value, squares = product_tile(
        x + row * X_STRIDE, row_inside, x_scales, row * GROUPS, weight, scale, zero, norm, n,
        n_inside, first, last, K, KIND, GROUP, GROUPS, ROW, PRESCALE, OUTPUTS, ROWS, STEP,
    )  # fmt: skip
    value = tl.trans(value)
    done = True
    if SPLITS > 1:
        # parts of a tile side by side, then the sums of squares of their rows
        r, i = tl.arange(0, ROWS), tl.arange(0, OUTPUTS)
        place = tile * tl.num_programs(1) + outputs
        square_at = partial + tl.num_programs(0) * tl.num_programs(1) * (SPLITS * ROWS * OUTPUTS)
        square_at += place * (SPLITS * ROWS) + r
        part_at = partial + place.to(tl.int64) * (SPLITS * ROWS * OUTPUTS)
        part_at += r[:, None] * OUTPUTS + i[None, :]
        tl.store(part_at + split * (ROWS * OUTPUTS), value)
        if norm is not None:
            tl.store(square_at + split * ROWS, squares)
        done = is_last(counters + place, SPLITS)
        if done:
            value = tl.zeros((ROWS, OUTPUTS), tl.float32)
            squares = tl.zeros((ROWS,), tl.float32)
            for part in tl.static_range(SPLITS):
                value += tl.load(part_at + part * (ROWS * OUTPUTS), cache_modifier=".cg")
                if norm is not None:
                    squares += tl.load(square_at + part * ROWS, cache_modifier=".cg")
    if done:
        if norm is not None:
            value = value * tl.rsqrt(squares / K + EPS)[:, None]
        finish_in_pieces(
            value, row, row_inside, outputs * OUTPUTS, bias, residual, cos, sin, slots, out,
            k_cache, v_cache, N, RESIDUAL_STRIDE, ACTIVATION, GATE, UP, TURN,
        )  # fmt: skip


def tiles_for(
    rows: int, n: int, k: int, format: WeightFormat, dtype: str, *, integer: bool = False
) -> Tiles:
    """Tiles for buckets of up to `rows` rows of `dtype`, inputs in one part: where the cost model
    starts from. They fit the 99 KB of sm_86 and sm_89.
    """
    wide = dtype == "float32"
    if wide:
        tiles = Tiles(64, 16, 32, num_stages=1) if rows <= 32 else Tiles(64, 32, 32, num_stages=1)
    elif rows <= 32:
        tiles = Tiles(64, 16 if rows <= 16 else 32, 128, num_stages=3)
    elif rows <= 128 or (integer and format.group):  # sums of a group take registers of their own
        tiles = Tiles(64, 64, 64, num_stages=4)
    else:
        tiles = Tiles(128, 128, 64, num_warps=8, num_stages=3)
    step = min(tiles.step, format.group) if format.group else tiles.step
    return replace(tiles, step=min(step, max(32, next_power_of_two(k))))


def most_splits(tiles: Tiles, k: int, format: WeightFormat) -> int:
    """Parts that k inputs may be cut into, of four steps at least."""
    return max(1, min(8, k // (4 * max(tiles.step, CHUNK if format.kind == "w4" else 0))))


def linear(
    n: int, k: int, format: WeightFormat, tiles: Tiles, *, x_stride: int, integer: bool = False,
    norm: str | None = None, eps: float = 0.0, bias: str | None = None,
    residual_stride: int | None = None, activation: str = "none",
    gate: tuple[int, int] | None = None, turn: TurnedHeads | None = None,
    dtype: str = "float32", rows: RowCount = "T",
) -> TritonKernel:  # fmt: skip
    """gw.linear and gw.quantized_linear: activation(x · weightᵀ + bias) + residual.

    Pointers: batch, x (rows of k), (x_scales float32 [rows, groups]), weight, (scale), (zero) as in
    WeightFormat, (norm [k]), (bias [N]), (residual), out [rows, N]. x holds `dtype`, or with
    `integer` int8 of quantize_rows with its scales; residual and out hold `dtype`. norm: x goes
    through an RMS norm with this weight, of which `norm` is the dtype, first. gate: (where the rows
    of the gate, and of what it gates, begin in the weight): out is activation(gate) * up [rows,
    N/2]. turn: the sums are heads; after residual come cos, sin and slots (see token_slots), out
    is the queries [rows, heads, dim], and behind it are the caches of keys and values. With
    tiles.splits > 1, before out: partial float32, and counters int32 that are zero before and
    after; `Tiles.scratch_bytes` says how large.
    """
    assert x_stride >= k and format.weight_bytes(n, k) < 2**31
    assert not integer or (format.kind != "dense" and norm is None)
    assert format.kind != "w8" or format.group % tiles.step == 0, "one scale for a step's inputs"
    several = tiles.splits > 1
    unit = CHUNK if format.kind == "w4" else tiles.step
    part = quotient_up(quotient_up(k, unit), tiles.splits) * unit
    return define(
        f"linear_{format.kind}",
        linear_kernel,
        {
            "batch": "int32", "x": "int8" if integer else dtype,
            "x_scales": "float32" if integer else None, **format.pointers(), "norm": norm,
            "bias": bias, "residual": None if residual_stride is None else dtype,
            **turn_inputs(turn), "partial": "float32" if several else None,
            "counters": "int32" if several else None, "out": dtype, **turn_results(turn),
        },
        format.constants(k)
        | finish_constants(n, activation, gate, turn, residual=residual_stride is not None)
        | {
            "X_STRIDE": x_stride, "RESIDUAL_STRIDE": residual_stride or 0, "EPS": eps,
            "COUNT": ROWS[rows], "PRESCALE": tiles.rows >= 64, "SPLITS": tiles.splits,
            "PART": part, "OUTPUTS": tiles.outputs, "ROWS": tiles.rows, "STEP": tiles.step,
        },
        grid=lambda size: (
            quotient_up(size[rows], tiles.rows), quotient_up(n, tiles.outputs), tiles.splits
        ),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )  # fmt: skip
