"""Caches of float8 (e4m3: a sign, four bits of exponent, three of mantissa; up to 448).

Numbers are converted by integers, so that every chip can: only newer ones have instructions for it.
A byte moved into float16 is the number times 2^-8, also below its smallest normal one.

Source: Micikevicius et al., FP8 formats for deep learning, arXiv 2209.05433.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["FLOAT8", "narrowed", "widened"]

FLOAT8 = "uint8"  # the element type of such caches in kernels


@triton.jit
def widened(value, DTYPE: tl.constexpr):
    """What a cache holds, as DTYPE; NaN becomes 480."""
    if value.dtype == tl.uint8:
        bits = value.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        return (half.to(tl.float16, bitcast=True) * 256.0).to(DTYPE)
    else:
        return value.to(DTYPE)


@triton.jit
def narrowed(value, KIND: tl.constexpr):
    """float32 as a cache of KIND holds it; of float8 the nearest of -448 to 448, ties to even."""
    if tl.uint8 == KIND:
        size = tl.minimum(tl.abs(value), 448.0)
        bits = size.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20
        # below 2^-6 in steps of 2^-9: adding and subtracting 1.5 * 2^23 rounds to an integer
        steps = ((size * 512.0 + 12582912.0) - 12582912.0).to(tl.uint32)
        code = tl.where(size < 0.015625, steps, rounded - 960)
        sign = (value.to(tl.uint32, bitcast=True) >> 24) & 0x80
        return (code | sign).to(tl.uint8)
    else:
        return value.to(KIND)
