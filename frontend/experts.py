"""Experts in a form that can be traced: each slot of a token reads the matrices of its expert.

How a model runs its experts is often an option of its configuration. Loops over the experts that
are hit cannot be traced, since what they do depends on values; grouped products arrive as one
opaque op. The gathered form is plain tensor code, and costs nothing while only shapes are computed.
Loops without that option are run once for all slots (`expert_blocks.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from graphwright.frontend.expert_blocks import routed_blocks
from graphwright.frontend.stateless import StatelessForward

__all__ = ["gathered_experts", "traceable_experts"]

_OPTION = "_experts_implementation"
_GATHERED = "batched_mm"


@contextlib.contextmanager
def traceable_experts(forward: StatelessForward) -> Iterator[None]:
    """While open, no block of the model decides by values which experts run on which tokens.

    Raises FrontendError for a loop over experts that cannot be shown to be one.
    """

    def run(tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(len(tokens)) if forward.takes_positions else None
        logits: torch.Tensor = forward(tokens, positions)
        return logits

    with gathered_experts(forward.model), routed_blocks(forward.model, run):
        yield


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
