"""What generated kernels call where Triton has no function of its own; all of float32 values."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["cosine", "expm1", "floor_divide", "log1p", "modulo", "power", "round_even", "sine",
           "softplus", "truncate"]  # fmt: skip


@triton.jit
def reduced_angle(x):  # type: ignore[no-untyped-def]
    """x minus whole turns, in float64: positions of rotary embeddings reach 1e6, and the hardware's
    sine is good to 5e-7 near zero only.
    """
    wide = x.to(tl.float64)
    turns = tl.floor(wide * 0.15915494309189535 + 0.5)
    return (wide - turns * 6.283185307179586).to(tl.float32)


@triton.jit
def sine(x):  # type: ignore[no-untyped-def]
    return tl.sin(reduced_angle(x))


@triton.jit
def cosine(x):  # type: ignore[no-untyped-def]
    return tl.cos(reduced_angle(x))


@triton.jit
def expm1(x):  # type: ignore[no-untyped-def]
    """exp(x) - 1 without cancellation. Source: Kahan, in Higham, Accuracy and Stability, 1.14."""
    u = tl.exp(x)
    safe = (u != 1.0) & (u > 0.0) & (u < float("inf"))
    quotient = (u - 1.0) * (x / tl.log(tl.where(safe, u, 2.0)))
    return tl.where(safe, quotient, tl.where(u == 1.0, x, u - 1.0))


@triton.jit
def log1p(x):  # type: ignore[no-untyped-def]
    """log(1 + x); same source."""
    u = 1.0 + x
    safe = (u != 1.0) & (u < float("inf"))
    return tl.where(safe, tl.log(u) * (x / tl.where(safe, u - 1.0, 1.0)), x)


@triton.jit
def softplus(x, beta, threshold):  # type: ignore[no-untyped-def]
    scaled = x * beta
    return tl.where(scaled > threshold, x, log1p(tl.exp(scaled)) / beta)


@triton.jit
def truncate(x):  # type: ignore[no-untyped-def]
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_even(x):  # type: ignore[no-untyped-def]
    """Ties to even: the addition rounds, as beyond 2^23 there are no fractions."""
    magic = tl.where(x < 0, -8388608.0, 8388608.0)
    return tl.where(tl.abs(x) < 8388608.0, (x + magic) - magic, x)


@triton.jit
def power(base, exponent):  # type: ignore[no-untyped-def]
    """base ** exponent: of a negative base for whole exponents only, NaN for others."""
    magnitude = tl.exp2(exponent * tl.log2(tl.abs(base)))
    whole = tl.floor(exponent) == exponent
    odd = tl.floor(exponent * 0.5) * 2.0 != exponent
    signed = tl.where(odd, -magnitude, magnitude)
    negative = tl.where(whole, signed, float("nan"))
    result = tl.where(base < 0, negative, magnitude)
    return tl.where(exponent == 0.0, 1.0, result)


@triton.jit
def modulo(a, b, FLOAT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The remainder with the sign of b, as torch's."""
    if FLOAT:
        rest = a - truncate(a / b) * b
    else:
        rest = a % b
    wrong = ((rest < 0) & (b > 0)) | ((rest > 0) & (b < 0))
    return tl.where(wrong, rest + b, rest)


@triton.jit
def floor_divide(a, b, FLOAT: tl.constexpr):  # type: ignore[no-untyped-def]
    if FLOAT:
        result = tl.floor(a / b)
    else:
        quotient = a // b
        rest = a - quotient * b
        wrong = ((rest < 0) & (b > 0)) | ((rest > 0) & (b < 0))
        result = tl.where(wrong, quotient - 1, quotient)
    return result
