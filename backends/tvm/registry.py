"""The lowerings of this backend: backends/registry.py for phases of CPU kernels."""

from __future__ import annotations

from graphwright.backends.registry import REGION, LedgerEntry, Registry
from graphwright.backends.tvm.context import LoweringContext
from graphwright.backends.tvm.phases import Phase

__all__ = ["REGION", "LedgerEntry", "lower_entry", "lowering", "lowerings_of"]

_REGISTRY: Registry[LoweringContext, Phase] = Registry("this CPU")
lowering = _REGISTRY.lowering
lowerings_of = _REGISTRY.lowerings_of
lower_entry = _REGISTRY.lower_entry
