"""Values for the arguments of a module's call, to run it by itself."""

from __future__ import annotations

from typing import Any

import torch

from graphwright.frontend.recurrent.call_arguments import token_axes
from graphwright.frontend.recurrent.held_tensors import held_tensors

__all__ = ["example", "first_result"]


def example(given: Any, token: Any, random: torch.Generator, tokens: int) -> Any:
    """Tensors with values for those of a call, for one sequence of `tokens` tokens.

    token: the same of a call for a single token. Integers that it has none of are a mask's.
    """
    if isinstance(given, torch.Tensor):
        sizes, axes = list(given.shape), token_axes(given, None)
        if axes is not None:
            sizes[axes[0]], sizes[axes[1]] = 1, tokens
        if given.is_floating_point():
            return torch.randn(sizes, generator=random)
        if axes is None or given.dtype is torch.bool or not isinstance(token, torch.Tensor):
            return torch.ones(sizes, dtype=given.dtype)
        shape = [tokens if axis == axes[1] else 1 for axis in range(len(sizes))]
        return torch.arange(tokens, dtype=given.dtype).reshape(shape).expand(sizes)  # positions
    if isinstance(given, (list, tuple)):
        parts = list(token) if isinstance(token, (list, tuple)) else []
        parts += [None] * (len(given) - len(parts))
        pairs = zip(given, parts, strict=False)
        return type(given)(example(*each, random, tokens) for each in pairs)
    if isinstance(given, dict):
        known = token if isinstance(token, dict) else {}
        return {
            name: example(value, known.get(name), random, tokens) for name, value in given.items()
        }
    return given


def first_result(result: Any) -> torch.Tensor:
    """The first tensor of what a module returns: [1, T, ...]."""
    return next(iter(held_tensors(result).values()))
