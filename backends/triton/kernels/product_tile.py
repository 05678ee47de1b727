"""A tile [outputs, rows] of weight · xᵀ, for weights of every format: what all products share.

The weights are the left operand: from integers they are made in registers, which is where tensor
cores can take the left operand from, and the 16 rows of a small batch are the narrow side of the
instruction (m16n8k16, m64n8k16) rather than padding of its wide one.

With `norm` the inputs are those of an RMS norm that was never written out. Its weight multiplies
inputs as they come, and the sum of their squares is taken on the way: 1 / rms is a factor of a
whole row, which the caller applies to the sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.attention_tile import dot
from graphwright.backends.triton.kernels.nibbles import (
    inputs_of,
    nibble_floats,
    place_of_row,
    rounded_product,
    rounded_sum,
)

__all__ = ["product_tile"]


@triton.jit
def weighted(x, norm, k, squares, K: tl.constexpr):
    """(x [inputs, rows] times the norm's weight of inputs k, squares + the squares of each row)."""
    wide = x.to(tl.float32)
    factor = tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
    return (wide * factor[:, None]).to(x.dtype), squares + tl.sum(wide * wide, axis=0)


@triton.jit
def product_tile(
    x_rows, x_inside, x_scales, x_scale_rows, weight, scale, zero, norm, n, n_inside, first, last,
    K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROW: tl.constexpr, PRESCALE: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """(float32 [OUTPUTS, ROWS], sums of squares [ROWS] for `norm`): inputs first .. last (multiples
    of STEP, for w4 of 128, or K) of the weight's rows n.

    x_rows: pointers to the rows of x; x_scales: where those were quantized to int8, their scales
    (row x_scale_rows + group), else None. With PRESCALE weights are multiplied by the scale of
    their group and rounded to the type of x (so is the scale, of w4), else sums of a group are
    multiplied, in float32.
    """
    result = tl.zeros((OUTPUTS, ROWS), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    if KIND == "w4":
        SPAN: tl.constexpr = (
            64 if GROUP > 64 else GROUP
        )  # inputs of one scale that are multiplied at once
        RUNS: tl.constexpr = SPAN // 16
        j = tl.arange(0, SPAN)
        words = (weight + place_of_row(n, ROW)).to(tl.pointer_type(tl.int32), bitcast=True)[:, None]
        words += tl.arange(0, 16)[None, :]
        kind: tl.constexpr = x_rows.dtype.element_ty
        sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
        for start in range(first, last, 128):
            packed = tl.load(words + start, mask=n_inside[:, None], other=0)
            values = nibble_floats(packed, kind, True)
            for span in tl.static_range(128 // SPAN):
                k = start + span * SPAN + j
                group = (start + span * SPAN) // GROUP
                # the end of the padding has no scale (the sum makes a tensor of it)
                known = n_inside & (n * 0 + group < GROUPS)
                factor = tl.load(scale + n * GROUPS + group, mask=known, other=0.0).to(tl.float32)
                if K % 128 == 0:
                    mask = x_inside[None, :]
                else:
                    mask = x_inside[None, :] & (k < K)[:, None]
                x = tl.load(x_rows[None, :] + k[:, None], mask=mask, other=0)
                if norm is not None:
                    x, squares = weighted(x, norm, k, squares, K)
                value = inputs_of(values, span * RUNS, RUNS)
                if zero is not None:
                    point = tl.load(zero + n * GROUPS + group, mask=known, other=0).to(tl.int32)
                    shift = (8 - point).to(tl.float32).to(kind)  # not from int32: the interpreter
                    value = rounded_sum(value, shift[:, None])
                if x_scales is not None:
                    known_x = x_inside & (x_scale_rows * 0 + group < GROUPS)
                    x_factor = tl.load(x_scales + x_scale_rows + group, mask=known_x, other=0.0)
                    whole = tl.dot(value, x, out_dtype=tl.int32)
                    result += whole.to(tl.float32) * (factor[:, None] * x_factor[None, :])
                elif PRESCALE:
                    value = rounded_product(value, factor.to(kind)[:, None])
                    result = dot(value, x, result)
                else:
                    sums = dot(value, x, sums)
                    if (span * SPAN + SPAN) % GROUP == 0:
                        result += sums * factor[:, None]
                        sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    else:
        j = tl.arange(0, STEP)
        if KIND == "w8" and x_scales is not None and GROUP == 0:
            total = tl.zeros((OUTPUTS, ROWS), tl.int32)
        for start in range(first, last, STEP):
            k = start + j
            if K % STEP == 0:
                w_mask, x_mask = n_inside[:, None], x_inside[None, :]
            else:
                w_mask = n_inside[:, None] & (k < K)[None, :]
                x_mask = x_inside[None, :] & (k < K)[:, None]
            w = tl.load(weight + n[:, None] * ROW + k[None, :], mask=w_mask, other=0)
            x = tl.load(x_rows[None, :] + k[:, None], mask=x_mask, other=0)
            if norm is not None:
                x, squares = weighted(x, norm, k, squares, K)
            if KIND == "dense":
                result = dot(w.to(x.dtype), x, result)
            elif x_scales is not None:
                if GROUP == 0:
                    total = tl.dot(w, x, total, out_dtype=tl.int32)
                else:
                    group = start // GROUP
                    factor = tl.load(scale + n * GROUPS + group, mask=n_inside, other=0.0)
                    x_factor = tl.load(x_scales + x_scale_rows + group, mask=x_inside, other=0.0)
                    sums = tl.dot(w, x, out_dtype=tl.int32)
                    result += sums.to(tl.float32) * (factor[:, None] * x_factor[None, :])
            elif GROUP == 0:
                result = dot(w.to(tl.float32).to(x.dtype), x, result)
            else:
                factor = tl.load(scale + n * GROUPS + start // GROUP, mask=n_inside, other=0.0)
                if PRESCALE:
                    value = (w.to(tl.float32) * factor[:, None]).to(x.dtype)
                    result = dot(value, x, result)
                else:
                    value = w.to(tl.float32).to(x.dtype)
                    sums = dot(value, x, tl.zeros((OUTPUTS, ROWS), tl.float32))
                    result += sums * factor[:, None]
        if KIND == "w8" and GROUP == 0:
            factor = tl.load(scale + n, mask=n_inside, other=0.0)
            if x_scales is not None:
                x_factor = tl.load(x_scales + x_scale_rows, mask=x_inside, other=0.0)
                result = total.to(tl.float32) * (factor[:, None] * x_factor[None, :])
            else:
                result = result * factor[:, None]
    return result, squares
