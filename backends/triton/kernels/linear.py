"""Matrix products of many rows or few, by weights of any format, with their epilogue.

`linear` picks tiles by the bucket's rows. Up to 32 rows, decode, a product reads the weights once
and is bound by those bytes: tiles of 64 outputs, and the inputs split over enough programs to keep
all multiprocessors loading; the splits are added in their order by `combine_products`, so results
do not vary. From 64 rows on it is bound by the tensor cores: tiles of 128 x 128 make 64 FLOP for
each byte that they read from the L2 cache, and programs of the same weights run side by side, so
that weights are read from memory once. Integer weights become floats in registers, at 3 to 4
operations each, which 128 rows use 128 times.

The meaning of integer weights here is x · dequantized weight: activations stay floats. With
`integer`, activations are int8 and sums exact, as gw.quantized_linear says: for artifacts that must
equal their reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.product_tile import finish, product_tile
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.kernels.weight_format import WeightFormat
from graphwright.ir.activations import ACTIVATIONS

__all__ = ["Tiles", "combine_products", "linear", "tiles_for"]

_PROGRAMS = 256  # that few rows should give: about two for each multiprocessor


@dataclass(frozen=True)
class Tiles:
    """outputs x rows of a tile, inputs in a step, parts of the inputs."""

    outputs: int
    rows: int
    step: int
    splits: int = 1
    num_warps: int = 4
    num_stages: int = 3


@triton.jit
def linear_kernel(
    batch, x, x_scales, weight, scale, zero, bias, residual, partial, out,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, ROW: tl.constexpr, HALF: tl.constexpr, X_STRIDE: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, COUNT: tl.constexpr,
    MOST: tl.constexpr, PRESCALE: tl.constexpr, PART: tl.constexpr, OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    rows = tl.load(batch + COUNT)
    if tl.program_id(0) * ROWS >= rows:
        return
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    first = tl.program_id(2) * PART
    last = tl.minimum(first + PART, K)
    value = product_tile(
        x + row * X_STRIDE, row < rows, x_scales, row * GROUPS, weight, scale, zero, n, n < N,
        first, last, K, KIND, GROUP, GROUPS, ROW, HALF, PRESCALE, OUTPUTS, ROWS, STEP,
    )  # fmt: skip
    value = tl.trans(value)
    inside = (row < rows)[:, None] & (n < N)[None, :]
    if partial is not None:
        at = (tl.program_id(2).to(tl.int64) * MOST + row)[:, None] * N + n[None, :]
        tl.store(partial + at, value, mask=inside)
    else:
        finish(value, row, n, inside, bias, residual, out, N, RESIDUAL_STRIDE, ACTIVATION)


@triton.jit
def combine_products_kernel(
    batch, partial, bias, residual, out,
    N: tl.constexpr, RESIDUAL_STRIDE: tl.constexpr, ACTIVATION: tl.constexpr,
    COUNT: tl.constexpr, MOST: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    rows = tl.load(batch + COUNT)
    if tl.program_id(0) >= rows:
        return
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (n < N)[None, :]
    value = tl.zeros((1, BLOCK), tl.float32)
    for split in tl.static_range(SPLITS):
        at = (split * MOST + row)[:, None] * N + n[None, :]
        value += tl.load(partial + at, mask=inside, other=0.0)
    finish(value, row, n, inside, bias, residual, out, N, RESIDUAL_STRIDE, ACTIVATION)


def tiles_for(
    rows: int, n: int, k: int, format: WeightFormat, dtype: str, *, integer: bool = False
) -> Tiles:
    """Tiles for buckets of up to `rows` rows of `dtype`. They fit the 99 KB of sm_86 and sm_89."""
    wide = dtype == "float32"
    if wide:
        tiles = Tiles(32, 16, 32, num_stages=1) if rows <= 32 else Tiles(64, 32, 32, num_stages=1)
    elif rows <= 32:
        tiles = Tiles(64, 16 if rows <= 16 else 32, 128, num_stages=3)
    elif rows <= 128 or (integer and format.group):  # sums of a group take registers of their own
        tiles = Tiles(64, 64, 64, num_stages=4)
    else:
        tiles = Tiles(128, 128, 64, num_warps=8, num_stages=3)
    step = min(tiles.step, format.group) if format.group else tiles.step
    step = min(step, max(32, next_power_of_two(k)))
    splits = 1
    if rows <= 32:
        unit = max(step, 2 * format.half)
        programs = quotient_up(n, tiles.outputs) * quotient_up(rows, tiles.rows)
        splits = max(1, min(8, quotient_up(_PROGRAMS, programs), k // (4 * unit)))
    return Tiles(tiles.outputs, tiles.rows, step, splits, tiles.num_warps, tiles.num_stages)


def linear(
    n: int, k: int, format: WeightFormat, tiles: Tiles, *, x_stride: int, integer: bool = False,
    bias: str | None = None, residual_stride: int | None = None, activation: str = "none",
    dtype: str = "float32", rows: RowCount = "T", most: int = 0,
) -> TritonKernel:  # fmt: skip
    """gw.linear and gw.quantized_linear: activation(x · weightᵀ + bias) + residual.

    Pointers: batch, x (rows of k), (x_scales float32 [rows, groups]), weight, (scale), (zero) as in
    WeightFormat, (bias [N]), (residual), out [rows, N]. x holds `dtype`, or with `integer` int8 of
    quantize_rows with its scales; residual and out hold `dtype`. With tiles.splits > 1, neither
    bias, residual nor out, but partial float32 [splits, most, N] for `combine_products`.
    """
    assert activation in ACTIVATIONS and x_stride >= k and n * format.row_bytes(k) < 2**31
    assert not integer or format.kind != "dense"
    single = tiles.splits == 1
    unit = 2 * format.half if format.kind == "w4" else tiles.step
    part = quotient_up(quotient_up(k, unit), tiles.splits) * unit
    return define(
        f"linear_{format.kind}",
        linear_kernel,
        {
            "batch": "int32", "x": "int8" if integer else dtype,
            "x_scales": "float32" if integer else None, **format.pointers(),
            "bias": bias if single else None,
            "residual": dtype if single and residual_stride is not None else None,
            "partial": None if single else "float32", "out": dtype if single else None,
        },
        format.constants(k) | {
            "N": n, "X_STRIDE": x_stride, "RESIDUAL_STRIDE": residual_stride or 0,
            "ACTIVATION": activation, "COUNT": ROWS[rows], "MOST": most,
            "PRESCALE": tiles.rows >= 64, "PART": part, "OUTPUTS": tiles.outputs,
            "ROWS": tiles.rows, "STEP": tiles.step,
        },
        grid=lambda size: (
            quotient_up(size[rows], tiles.rows), quotient_up(n, tiles.outputs), tiles.splits
        ),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )  # fmt: skip


def combine_products(
    n: int, splits: int, *, most: int, bias: str | None = None,
    residual_stride: int | None = None, activation: str = "none", dtype: str = "float32",
    rows: RowCount = "T",
) -> TritonKernel:  # fmt: skip
    """The parts of a split product added in their order, and the epilogue.

    Pointers: batch, partial float32 [splits, most, N], (bias), (residual), out [rows, N].
    """
    block = min(1024, next_power_of_two(n))
    return define(
        "combine_products",
        combine_products_kernel,
        {
            "batch": "int32", "partial": "float32", "bias": bias,
            "residual": None if residual_stride is None else dtype, "out": dtype,
        },
        {
            "N": n, "RESIDUAL_STRIDE": residual_stride or 0, "ACTIVATION": activation,
            "COUNT": ROWS[rows], "MOST": most, "SPLITS": splits, "BLOCK": block,
        },
        grid=lambda size: (size[rows], quotient_up(n, block), 1),
        num_warps=4,
    )  # fmt: skip
