"""A tile [outputs, rows] of weight · xᵀ, for weights of every format: what all products share.

The weights are the left operand: from integers they are made in registers, which is where tensor
cores can take the left operand from, and the 16 rows of a small batch are the narrow side of the
instruction (m16n8k16, m64n8k16) rather than padding of its wide one.

With `norm` the inputs are those of an RMS norm that was never written out. Its weight multiplies
inputs as they come, and the sum of their squares is taken on the way: 1 / rms is a factor of a
whole row, which the caller applies to the sums.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.attention_tile import dot

__all__ = ["product_tile"]

# Triton's interpreter has no assembly
COMPILED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") != "1")


@triton.jit
def nibble(packed, HIGH: tl.constexpr):
    """The low or high nibbles as int32."""
    return (packed.to(tl.int32) >> 4) if HIGH else (packed.to(tl.int32) & 15)


def _assembly(ones: str, subtract: str, *constants: str) -> str:
    """Eight nibbles of $4 to four pairs of floats: OR-ed into the last bits of `ones`, a power of
    two that `subtract`, with `constants` in a and b, takes away again, and 8 with it.
    """
    lines = [".reg .b32 a, b;", "prmt.b32 a, $4, 0, 0x4140;", "prmt.b32 b, $4, 0, 0x4342;"]
    lines += [f"lop3.b32 ${i}, {'ab'[i]}, 0x000F000F, {ones}, 0xEA;" for i in range(2)]
    lines += ["shr.u32 a, a, 4;", "shr.u32 b, b, 4;"]
    lines += [f"lop3.b32 ${2 + i}, {'ab'[i]}, 0x000F000F, {ones}, 0xEA;" for i in range(2)]
    lines += [f"mov.b32 {name}, {value};" for name, value in zip("ab", constants, strict=False)]
    lines += [f"{subtract.format(f'${i}')};" for i in range(4)]
    return "{ " + " ".join(lines) + " }"


# bfloat16 has no addition before sm_90
BFLOATS = tl.constexpr(
    _assembly("0x43004300", "fma.rn.bf16x2 {0}, {0}, a, b", "0x3F803F80", "0xC308C308")
)
HALVES = tl.constexpr(_assembly("0x64006400", "add.rn.f16x2 {0}, {0}, a", "0xE408E408"))


@triton.jit
def nibble_floats(packed, dtype: tl.constexpr):
    """(low nibbles - 8, high nibbles - 8) of bytes as dtype, bfloat16 or float16: 12 instructions
    for 8 numbers. A nibble becomes the last bits of 128 (bfloat16) or 1024 (float16), two at once.
    """
    if dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            BFLOATS, "=&r,=&r,=&r,=&r,r", [packed], (tl.bfloat16, tl.bfloat16), True, 4
        )
    else:
        return tl.inline_asm_elementwise(
            HALVES, "=&r,=&r,=&r,=&r,r", [packed], (tl.float16, tl.float16), True, 4
        )


@triton.jit
def small_float(value):
    """float32 of int32 values 0..255: an `or` and an addition, twice as fast as a conversion."""
    return (value | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


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
    ROW: tl.constexpr, HALF: tl.constexpr, PRESCALE: tl.constexpr, OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """(float32 [OUTPUTS, ROWS], sums of squares [ROWS] for `norm`): inputs first .. last (multiples
    of STEP, or K) of the weight's rows n.

    x_rows: pointers to the rows of x; x_scales: where those were quantized to int8, their scales
    (row x_scale_rows + group), else None. With PRESCALE weights are multiplied by the scale of
    their group and rounded to the type of x, else sums of a group are multiplied, in float32.
    """
    result = tl.zeros((OUTPUTS, ROWS), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    if KIND == "w4":
        j = tl.arange(0, HALF)
        FAST: tl.constexpr = COMPILED and x_scales is None
        TOGETHER: tl.constexpr = not PRESCALE and GROUP == 2 * HALF  # both halves have one scale
        if TOGETHER and x_scales is None:
            sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
        for start in range(first, last, 2 * HALF):
            at = weight + n[:, None] * ROW + (start // 2 + j)[None, :]
            packed = tl.load(at, mask=n_inside[:, None], other=0)
            if FAST:
                low_value, high_value = nibble_floats(packed, x_rows.dtype.element_ty)
            for high in tl.static_range(2):
                k = start + high * HALF + j
                group = (start + high * HALF) // GROUP
                # the last half of the padding has no scale (the sum makes a tensor of it)
                known = n_inside & (n * 0 + group < GROUPS)
                factor = tl.load(scale + n * GROUPS + group, mask=known, other=0.0).to(tl.float32)
                if zero is not None:
                    point = tl.load(zero + n * GROUPS + group, mask=known, other=0).to(tl.int32)
                    value_zero = point[:, None]
                else:
                    value_zero = 8
                if K % (2 * HALF) == 0:
                    mask = x_inside[None, :]
                else:
                    mask = x_inside[None, :] & (k < K)[:, None]
                x = tl.load(x_rows[None, :] + k[:, None], mask=mask, other=0)
                if norm is not None:
                    x, squares = weighted(x, norm, k, squares, K)
                if x_scales is not None:
                    known_x = x_inside & (x_scale_rows * 0 + group < GROUPS)
                    x_factor = tl.load(x_scales + x_scale_rows + group, mask=known_x, other=0.0)
                    value = nibble(packed, high) - value_zero
                    sums = tl.dot(value.to(tl.int8), x, out_dtype=tl.int32)
                    result += sums.to(tl.float32) * (factor[:, None] * x_factor[None, :])
                else:
                    if FAST:
                        value = high_value if high else low_value
                        if zero is not None:
                            value += (8 - value_zero).to(x.dtype)
                    else:
                        value = small_float(nibble(packed, high))
                        if zero is not None:
                            value -= value_zero.to(tl.float32)
                        else:
                            value -= 8.0
                    if PRESCALE:
                        value = (value.to(tl.float32) * factor[:, None]).to(x.dtype)
                        result = dot(value, x, result)
                    elif TOGETHER:
                        if high == 0:
                            sums = dot(value.to(x.dtype), x, tl.zeros_like(sums))
                        else:
                            sums = dot(value.to(x.dtype), x, sums)
                            result += sums * factor[:, None]
                    else:
                        sums = dot(value.to(x.dtype), x, tl.zeros((OUTPUTS, ROWS), tl.float32))
                        result += sums * factor[:, None]
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
