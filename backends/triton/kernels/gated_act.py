"""activation(gate) * up, elementwise; gate and up are often two halves of one merged product."""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.activation import activate
from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.ir.activations import ACTIVATIONS

__all__ = ["gated_act"]

_BLOCK = 1024  # elements of a row that one program takes: 8 a thread, 16 bytes of bfloat16


@triton.jit
def gated_act_kernel(
    batch, gate, up, out,
    WIDTH: tl.constexpr, GATE_STRIDE: tl.constexpr, UP_STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(batch + ROWS):
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    left = tl.load(gate + row * GATE_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(up + row * UP_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    value = activate(left, ACTIVATION) * right
    tl.store(out + row * WIDTH + column, value.to(out.dtype.element_ty), mask=inside)


def gated_act(
    width: int, *, gate_stride: int, up_stride: int, activation: str, dtype: str = "float32",
    rows: RowCount = "T",
) -> TritonKernel:  # fmt: skip
    """Pointers: batch, gate, up (rows of `width` with their strides), out [rows, width]."""
    assert activation in ACTIVATIONS and min(gate_stride, up_stride) >= width
    block = min(_BLOCK, next_power_of_two(width))
    return define(
        "gated_act",
        gated_act_kernel,
        {"batch": "int32", "gate": dtype, "up": dtype, "out": dtype},
        {
            "WIDTH": width, "GATE_STRIDE": gate_stride, "UP_STRIDE": up_stride,
            "ACTIVATION": activation, "ROWS": ROWS[rows], "BLOCK": block,
        },
        grid=lambda size: (size[rows], quotient_up(width, block), 1),
        num_warps=4,
    )  # fmt: skip
