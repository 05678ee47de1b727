"""The token with the largest logit, in two stages.

A first kernel takes each row of logits in parts of 4,096 and keeps the best key of each part: 64
bits, the logit's bits above the inverted index, so that a maximum of keys is the argmax with the
lowest index first among equals. A second one takes the best of a row's keys. 128,256 logits are
32 programs that read 16 KB each: a few microseconds, where one program would need some tens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.kernels.top_k import ranking_key

__all__ = ["argmax_parts", "best_of_parts", "part_count"]

_PART = 4096


@triton.jit
def argmax_parts_kernel(
    batch, logits, keys,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if row >= tl.load(batch + ROWS):
        return
    column = part * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(logits + row * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    key = tl.where(inside, ranking_key(value, column), -0x8000000000000000)
    tl.store(keys + row * PARTS + part, tl.max(key, axis=0))


@triton.jit
def best_of_parts_kernel(
    batch, keys, tokens, ROWS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(batch + ROWS):
        return
    part = tl.arange(0, BLOCK)
    key = tl.load(keys + row * PARTS + part, mask=part < PARTS, other=-0x8000000000000000)
    best = tl.max(key, axis=0)
    index = 0x7FFFFFFF - (best & 0xFFFFFFFF)
    # the key of a NaN is above all others
    tl.store(tokens + row, tl.where((best >> 32) == 0x7FFFFFFF, -1, index))


def part_count(width: int) -> int:
    """Keys that `argmax_parts` keeps of a row of `width` logits."""
    return quotient_up(width, _PART)


def argmax_parts(
    width: int, *, stride: int, dtype: str = "float32", rows: RowCount = "R"
) -> TritonKernel:
    """Pointers: batch, logits (rows of `width`), keys int64 [rows, part_count(width)]."""
    assert 0 < width < 2**31 and stride >= width
    return define(
        "argmax_parts",
        argmax_parts_kernel,
        {"batch": "int32", "logits": dtype, "keys": "int64"},
        {
            "WIDTH": width, "STRIDE": stride, "ROWS": ROWS[rows], "PARTS": part_count(width),
            "BLOCK": _PART,
        },
        grid=lambda size: (size[rows], part_count(width), 1),
        num_warps=8,
    )  # fmt: skip


def best_of_parts(width: int, *, rows: RowCount = "R") -> TritonKernel:
    """Pointers: batch, keys of argmax_parts, tokens int64 [rows]: -1 where a logit was NaN."""
    parts = part_count(width)
    return define(
        "best_of_parts",
        best_of_parts_kernel,
        {"batch": "int32", "keys": "int64", "tokens": "int64"},
        {"ROWS": ROWS[rows], "PARTS": parts, "BLOCK": next_power_of_two(parts)},
        grid=lambda size: (size[rows], 1, 1),
        num_warps=1,
    )
