"""Activations to int8 on the fly, with a scale for each row and group of inputs."""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up

__all__ = ["quantize_rows"]

_ELEMENTS = 4096  # of one program


@triton.jit
def quantize_rows_kernel(
    batch, x, values, scales,
    PER_ROW: tl.constexpr, SUBROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    X_STRIDE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(batch + ROWS):
        return
    group = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, BLOCK)
    inside = (group < GROUPS * SUBROWS)[:, None] & (column < WIDTH)[None, :]
    at = group[:, None] * WIDTH + column[None, :]
    value = tl.load(x + row * X_STRIDE + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.div_rn(tl.max(tl.abs(value), axis=1), 127.0)
    divisor = tl.where(scale == 0.0, 1.0, scale)
    # adding and subtracting 1.5 * 2^23 rounds to an integer, ties to even
    rounded = (tl.div_rn(value, divisor[:, None]) + 12582912.0) - 12582912.0
    tl.store(values + row * PER_ROW + at, rounded.to(tl.int8), mask=inside)
    tl.store(scales + row * (GROUPS * SUBROWS) + group, scale, mask=group < GROUPS * SUBROWS)


def quantize_rows(
    k: int, *, x_stride: int, groups: int = 1, subrows: int = 1, dtype: str = "float32",
    rows: RowCount = "T",
) -> TritonKernel:  # fmt: skip
    """graphwright.ir.schemes.quantize_activation of rows that hold `subrows` vectors of k elements.

    Pointers: batch, x (rows of subrows * k), values int8 [rows, subrows, k], scales float32
    [rows, subrows, groups].
    """
    assert k % groups == 0 and x_stride >= subrows * k
    width = k // groups
    block = next_power_of_two(width)
    tile = max(1, min(next_power_of_two(groups * subrows), _ELEMENTS // block))
    return define(
        "quantize_rows",
        quantize_rows_kernel,
        {"batch": "int32", "x": dtype, "values": "int8", "scales": "float32"},
        {
            "PER_ROW": subrows * k, "SUBROWS": subrows, "GROUPS": groups, "WIDTH": width,
            "X_STRIDE": x_stride, "ROWS": ROWS[rows], "TILE": tile, "BLOCK": block,
        },
        grid=lambda size: (size[rows], quotient_up(groups * subrows, tile), 1),
        num_warps=max(1, min(16, tile * block // 512)),
    )  # fmt: skip
