"""The token with the largest logit.

Each row of logits is taken in parts of 4,096, of which the best key is kept: 64 bits, the logit's
bits above the inverted index, so that a maximum of keys is the argmax with the lowest index first
among equals. The last program of a row to come takes the best of its keys. 128,256 logits are 32
programs that read 16 KB each: a few microseconds, where one program would need some tens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.epilogue import is_last
from graphwright.backends.triton.kernels.kernel import ROWS, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.kernels.top_k import ranking_key

__all__ = ["argmax", "argmax_scratch"]

_PART = 4096


@triton.jit
def argmax_kernel(
    batch, logits, keys, counters, largest, chosen,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if row >= tl.load(batch + ROWS):
        return
    column = part * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(logits + row * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    key = tl.where(inside, ranking_key(value, column), -0x8000000000000000)
    tl.store(keys + row * PARTS + part, tl.max(key, axis=0))
    if is_last(counters + row, PARTS):
        each = tl.arange(0, PADDED)
        other = -0x8000000000000000
        at = keys + row * PARTS + each
        best = tl.max(tl.load(at, mask=each < PARTS, other=other, cache_modifier=".cg"), axis=0)
        index = 0x7FFFFFFF - (best & 0xFFFFFFFF)
        # the key of a NaN is above all others
        index = tl.where((best >> 32) == 0x7FFFFFFF, -1, index)
        tl.store(largest + row, index.to(tl.int32))
        tl.store(chosen + row, index.to(tl.int32))


def argmax(width: int, *, stride: int, dtype: str = "float32") -> TritonKernel:
    """Pointers: batch, logits (rows of `width`, one a sampled row), the scratch keys int64 and
    counters int32 (zero before and after) of `argmax_scratch`, and twice the tokens int32 [R], -1
    where a logit was NaN: `largest` for the host, `chosen` for the step behind.
    """
    assert 0 < width < 2**31 and stride >= width
    parts = quotient_up(width, _PART)
    return define(
        "argmax",
        argmax_kernel,
        {
            "batch": "int32", "logits": dtype, "keys": "int64", "counters": "int32",
            "largest": "int32", "chosen": "int32",
        },
        {
            "WIDTH": width, "STRIDE": stride, "ROWS": ROWS["R"], "PARTS": parts,
            "PADDED": next_power_of_two(parts), "BLOCK": _PART,
        },
        grid=lambda size: (size["R"], parts, 1),
        num_warps=8,
    )  # fmt: skip


def argmax_scratch(width: int, rows: int) -> tuple[int, int]:
    """Bytes of keys and counters for so many rows."""
    return 8 * rows * quotient_up(width, _PART), 4 * rows
