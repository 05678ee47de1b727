"""What a token's experts gave, added up by their weights."""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up

__all__ = ["weighted_sum"]

_BLOCK = 1024


@triton.jit
def weighted_sum_kernel(
    batch, y, weights, out,
    SLOTS: tl.constexpr, WIDTH: tl.constexpr, Y_STRIDE: tl.constexpr,
    WEIGHTS_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(batch + ROWS):
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in tl.static_range(SLOTS):
        part = tl.load(y + token * Y_STRIDE + slot * WIDTH + column, mask=inside, other=0.0)
        factor = tl.load(weights + token * WEIGHTS_STRIDE + slot)
        total += part.to(tl.float32) * factor.to(tl.float32)
    tl.store(out + token * WIDTH + column, total.to(out.dtype.element_ty), mask=inside)


def weighted_sum(
    slots: int, width: int, *, y_stride: int, weights_stride: int, dtype: str = "float32",
    weights: str = "float32", rows: RowCount = "T",
) -> TritonKernel:  # fmt: skip
    """Σ_s weights[t, s] * y[t, s] in order of s.

    Pointers: batch, y (rows [slots, width]), weights (rows [slots]), out [T, width].
    """
    assert y_stride >= slots * width and weights_stride >= slots
    block = min(_BLOCK, next_power_of_two(width))
    return define(
        "weighted_sum",
        weighted_sum_kernel,
        {"batch": "int32", "y": dtype, "weights": weights, "out": dtype},
        {
            "SLOTS": slots, "WIDTH": width, "Y_STRIDE": y_stride,
            "WEIGHTS_STRIDE": weights_stride, "ROWS": ROWS[rows], "BLOCK": block,
        },
        grid=lambda size: (size[rows], quotient_up(width, block), 1),
        num_warps=4,
    )  # fmt: skip
