"""Experts in a form that can be traced: every routed row reads the gathered matrices of its expert.

How a model runs its experts is often an option of its configuration. Loops over the experts that
are hit cannot be traced, since what they do depends on values; grouped products arrive as one
opaque op. The gathered form is plain tensor code, and costs nothing while only shapes are computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["gathered_experts"]

_OPTION = "_experts_implementation"
_GATHERED = "batched_mm"


@contextlib.contextmanager
def gathered_experts(model: nn.Module) -> Iterator[None]:
    """While open, every configuration in `model` that has the option asks for gathered experts."""
    saved = [(config, getattr(config, _OPTION)) for config in _configurations(model)]
    try:
        for config, _ in saved:
            setattr(config, _OPTION, _GATHERED)
        yield
    finally:  # outer ones first: they hand their choice down to those inside them
        for config, value in saved:
            setattr(config, _OPTION, value)


def _configurations(model: nn.Module) -> list[Any]:
    """Every configuration object that has the option, each after those that hold it."""
    found: dict[int, Any] = {}

    def visit(config: Any) -> None:
        if hasattr(config, _OPTION) and id(config) not in found:
            found[id(config)] = config
            for inner in vars(config).values():
                visit(inner)

    for module in model.modules():
        visit(getattr(module, "config", None))
    return list(found.values())
