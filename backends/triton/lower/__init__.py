"""Lowerings of the gw ops to kernels: importing this package registers them all."""

from graphwright.backends.triton.lower import (
    attention,
    causal_conv,
    linear,
    pointwise,
    region,
    routed,
    scan,
    tokens,
)

__all__ = [
    "attention",
    "causal_conv",
    "linear",
    "pointwise",
    "region",
    "routed",
    "scan",
    "tokens",
]
