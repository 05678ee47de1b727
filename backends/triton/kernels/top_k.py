"""The largest values of each row and of equal ones the lower index first."""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two

__all__ = ["NAN_KEY", "ordered_bits", "ranking_key", "top_k"]

NAN_KEY = 0x7FFFFFFF  # the upper half of a NaN's key: above infinity's
_WIDEST = 4096


@triton.jit
def ordered_bits(value):
    """int32 that order like float32 `value`: NaN first, -0 like 0."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(value != value, 0x7FFFFFFF, ordered)


@triton.jit
def ranking_key(value, index):
    """int64 keys that order like (value, -index), value float32 as in `ordered_bits`."""
    return (ordered_bits(value).to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def top_k_kernel(
    batch, x, values, indices,
    WIDTH: tl.constexpr, K: tl.constexpr, X_STRIDE: tl.constexpr, VECTORS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(batch + ROWS) * VECTORS:
        return
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    start = x + row // VECTORS * X_STRIDE + row % VECTORS * WIDTH
    value = tl.load(start + column, mask=inside, other=0.0).to(tl.float32)
    lowest = tl.full((BLOCK,), -0x8000000000000000, tl.int64)
    key = tl.where(inside, ranking_key(value, column), lowest)
    for place in range(K):
        best = tl.max(key, axis=0)
        index = 0x7FFFFFFF - (best & 0xFFFFFFFF).to(tl.int32)
        chosen = column == index
        found = tl.sum(tl.where(chosen, value, 0.0), axis=0)
        tl.store(values + row * K + place, found.to(values.dtype.element_ty))
        tl.store(indices + row * K + place, index.to(tl.int64))
        key = tl.where(chosen, lowest, key)


def top_k(
    width: int, k: int, *, x_stride: int, dtype: str = "float32", rows: RowCount = "T",
    vectors: int = 1,
) -> TritonKernel:  # fmt: skip
    """Pointers: batch, x (rows of `vectors` times `width`), values [rows, vectors, k], indices
    int64 [rows, vectors, k].

    One program a vector: k rounds of a maximum over keys held in registers. For routers, where
    width <= some hundreds and k <= 16 or so; a NaN counts as the largest, as for torch.sort.
    """
    assert 0 < k <= width <= _WIDEST and x_stride >= width * vectors
    block = next_power_of_two(width)
    return define(
        "top_k",
        top_k_kernel,
        {"batch": "int32", "x": dtype, "values": dtype, "indices": "int64"},
        {
            "WIDTH": width,
            "K": k,
            "X_STRIDE": x_stride,
            "VECTORS": vectors,
            "ROWS": ROWS[rows],
            "BLOCK": block,
        },
        grid=lambda size: (size[rows] * vectors, 1, 1),
        num_warps=max(1, min(8, block // 128)),
    )
