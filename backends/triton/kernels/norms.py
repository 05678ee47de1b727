"""RMS norm and layer norm of rows, alone or with the residual addition in front.

A row holds `groups` vectors of `width` elements (the heads, for a norm of queries and keys) that
are normalized apart. What is added may go through an RMS norm of its own before (a sandwich). A
program takes one long vector or several short ones, about 2,048 elements, and holds them in
registers: each element is read and written once, so the kernel costs its bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up

__all__ = ["norm"]

_ELEMENTS = 2048  # of one program, when vectors are short
_LONGEST = 32768  # elements of a vector: 16 warps hold 64 a thread


@triton.jit
def norm_kernel(
    batch, x, residual, before, weight, bias, total, out,
    WIDTH: tl.constexpr, GROUPS: tl.constexpr, X_STRIDE: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr, EPS: tl.constexpr, BEFORE_EPS: tl.constexpr,
    CENTER: tl.constexpr, ROWS: tl.constexpr, VECTORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    count = tl.load(batch + ROWS) * GROUPS
    if tl.program_id(0) * VECTORS >= count:
        return
    vector = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS)
    column = tl.arange(0, BLOCK)
    inside = (vector < count)[:, None] & (column < WIDTH)[None, :]
    row, group = (vector // GROUPS).to(tl.int64), vector % GROUPS
    at = (row * X_STRIDE + group * WIDTH)[:, None] + column[None, :]
    dense = (vector.to(tl.int64) * WIDTH)[:, None] + column[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        other = (row * RESIDUAL_STRIDE + group * WIDTH)[:, None] + column[None, :]
        added = tl.load(residual + other, mask=inside, other=0.0).to(tl.float32)
        if before is not None:
            added = added * tl.rsqrt(tl.sum(added * added, axis=1) / WIDTH + BEFORE_EPS)[:, None]
            scale = tl.load(before + column, mask=column < WIDTH, other=0.0).to(tl.float32)
            added = added * scale[None, :]
        value += added
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + dense, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if CENTER:
        mean = tl.sum(value, axis=1) / WIDTH
        value = tl.where(inside, value - mean[:, None], 0.0)
    variance = tl.sum(value * value, axis=1) / WIDTH
    value = value * tl.rsqrt(variance + EPS)[:, None]
    if weight is not None:
        scale = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        value = value * scale[None, :]
    if bias is not None:
        shift = tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        value = value + shift[None, :]
    tl.store(out + dense, value.to(out.dtype.element_ty), mask=inside)


def norm(
    kind: str, width: int, *, x_stride: int, residual_stride: int | None = None,
    before: str | None = None, before_eps: float = 0.0, weight: str | None = None,
    bias: str | None = None, eps: float, groups: int = 1, dtype: str = "float32",
    rows: RowCount = "T",
) -> TritonKernel:  # fmt: skip
    """gw.rms_norm or gw.layer_norm (`kind`), with residual_stride gw.add_rms_norm and so on.

    Pointers: batch, x, (residual), (before [width]), (weight [width]), (bias [width]), (total),
    out. `before`, the weight of an RMS norm of the residual, `weight` and `bias` are their dtypes
    or None; x, residual, total and out hold `dtype`. The rows of x and residual lie `x_stride` and
    `residual_stride` elements apart, those of total and out are dense [rows, groups * width]. total
    (only with a residual) is x + residual, rounded to its dtype.
    """
    assert kind in ("rms_norm", "layer_norm") and (bias is None or kind == "layer_norm")
    assert 0 < width <= _LONGEST and x_stride >= groups * width
    assert before is None or (residual_stride is not None and groups == 1)
    assert residual_stride is None or residual_stride >= groups * width
    block = next_power_of_two(width)
    vectors = max(1, min(next_power_of_two(groups), _ELEMENTS // block))
    adds = residual_stride is not None
    given = {
        "batch": "int32", "x": dtype, "residual": dtype if adds else None, "before": before,
        "weight": weight, "bias": bias, "total": dtype if adds else None, "out": dtype,
    }  # fmt: skip
    constants = {
        "WIDTH": width, "GROUPS": groups, "X_STRIDE": x_stride,
        "RESIDUAL_STRIDE": residual_stride or 0, "EPS": eps, "BEFORE_EPS": before_eps,
        "CENTER": kind == "layer_norm", "ROWS": ROWS[rows], "VECTORS": vectors, "BLOCK": block,
    }  # fmt: skip
    prefix = "add_" if adds else ""
    return define(
        prefix + kind, norm_kernel, given, constants,
        grid=lambda size: (quotient_up(size[rows] * groups, vectors), 1, 1),
        num_warps=max(1, min(16, vectors * block // 512)),
    )  # fmt: skip
