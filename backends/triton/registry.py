"""The lowerings of this backend: backends/registry.py for launches of Triton kernels."""

from __future__ import annotations

from graphwright.backends.registry import REGION, LedgerEntry, Registry
from graphwright.backends.triton.context import LoweringContext
from graphwright.backends.triton.launches import Launch

__all__ = ["REGION", "LedgerEntry", "lower_entry", "lowering", "lowerings_of"]

_REGISTRY: Registry[LoweringContext, Launch] = Registry("an NVIDIA GPU")
lowering = _REGISTRY.lowering
lowerings_of = _REGISTRY.lowerings_of
lower_entry = _REGISTRY.lower_entry
