"""The activations of graphwright.ir.activations inside kernels, in float32."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["activate", "tanh"]


@triton.jit
def tanh(x):
    """By one exponential of a number <= 0, so that nothing overflows; absolute error below 1e-6."""
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def activate(x, NAME: tl.constexpr):
    """`NAME`(x) for a float32 tensor; NAME is a key of ACTIVATIONS."""
    if NAME == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif NAME == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif NAME == "relu2":
        x = tl.where(x < 0, 0.0, x * x)
    elif NAME == "sigmoid":
        x = 1.0 / (1.0 + tl.exp(-x))
    elif NAME == "tanh":
        x = tanh(x)
    else:
        tl.static_assert(NAME == "none", "an activation that is not known here")
    return x
