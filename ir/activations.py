"""The activation functions that ops take by name, each with its torch meaning."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

__all__ = ["ACTIVATIONS", "activate"]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def activate(x: torch.Tensor, name: str) -> torch.Tensor:
    """`name`(x). Raises KeyError for a name that is not in ACTIVATIONS."""
    return ACTIVATIONS[name](x)
