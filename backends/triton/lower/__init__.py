"""Lowerings of the gw ops to kernels: importing this package registers them all."""

from graphwright.backends.triton.lower import attention, linear, pointwise, region, tokens

__all__ = ["attention", "linear", "pointwise", "region", "tokens"]
