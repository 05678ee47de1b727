"""The rows of the sampled tokens, copied."""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import ROWS, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up

__all__ = ["select_rows"]

_BLOCK = 1024


@triton.jit
def select_rows_kernel(
    batch, x, rows, out, WIDTH: tl.constexpr, X_STRIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(batch + ROWS):
        return
    token = tl.load(rows + row).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + token * X_STRIDE + column, mask=inside, other=0)
    tl.store(out + row * WIDTH + column, value, mask=inside)


def select_rows(width: int, *, x_stride: int, dtype: str = "float32") -> TritonKernel:
    """x[rows]. Pointers: batch, x (rows of `width`), rows int32 [R], out [R, width]."""
    assert x_stride >= width
    block = min(_BLOCK, next_power_of_two(width))
    return define(
        "select_rows",
        select_rows_kernel,
        {"batch": "int32", "x": dtype, "rows": "int32", "out": dtype},
        {"WIDTH": width, "X_STRIDE": x_stride, "ROWS": ROWS["R"], "BLOCK": block},
        grid=lambda size: (size["R"], quotient_up(width, block), 1),
        num_warps=4,
    )
