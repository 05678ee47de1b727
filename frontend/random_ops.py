"""A forward that draws random numbers has no logits to be exact about."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.ir.errors import FrontendError
from graphwright.ir.source import source_line

__all__ = ["refuse_random"]

aten = torch.ops.aten


def refuse_random(graph: fx.Graph) -> None:
    """Raises FrontendError for the first op that draws random numbers, dropout in use included."""
    for node in graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and _draws(node):
            raise FrontendError(
                f"node '{node.name}' ({node.target}) draws random numbers{source_line(node)}. The "
                "same tokens would get other logits each time."
            )


def _draws(node: fx.Node) -> bool:
    if node.target is aten.dropout.default:
        return bool(node.args[1] and node.args[2])
    if node.target is aten.scaled_dot_product_attention.default:
        rate: Any = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p")
        return bool(rate)
    return True
