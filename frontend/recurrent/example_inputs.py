"""Values for the arguments of a module's call, to run it by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphwright.frontend.recurrent.call_arguments import token_axes
from graphwright.frontend.recurrent.held_tensors import held_tensors

__all__ = ["example", "first_result"]


def example(module: nn.Module, given: Any, token: Any, random: torch.Generator, tokens: int) -> Any:
    """Tensors with values for those of a call of `module`, for one sequence of `tokens` tokens.

    token: the same of a call for a single token. Integers that it has none of are a mask's, others
    are positions, or token ids where `module` is a whole model: below the size of its embeddings.
    """
    sizes = (each.num_embeddings for each in module.modules() if isinstance(each, nn.Embedding))
    numbers = torch.arange(tokens) % min(sizes, default=tokens)
    return _example(given, token, random, numbers)


def _example(given: Any, token: Any, random: torch.Generator, numbers: torch.Tensor) -> Any:
    if isinstance(given, torch.Tensor):
        sizes, axes = list(given.shape), token_axes(given, None)
        if axes is not None:
            sizes[axes[0]], sizes[axes[1]] = 1, len(numbers)
        if given.is_floating_point():
            return torch.randn(sizes, generator=random)
        if axes is None or given.dtype is torch.bool or not isinstance(token, torch.Tensor):
            return torch.ones(sizes, dtype=given.dtype)
        shape = [len(numbers) if axis == axes[1] else 1 for axis in range(len(sizes))]
        return numbers.to(given.dtype).reshape(shape).expand(sizes)
    if isinstance(given, (list, tuple)):
        parts = list(token) if isinstance(token, (list, tuple)) else []
        parts += [None] * (len(given) - len(parts))
        pairs = zip(given, parts, strict=False)
        return type(given)(_example(*each, random, numbers) for each in pairs)
    if isinstance(given, dict):
        known = token if isinstance(token, dict) else {}
        return {
            name: _example(value, known.get(name), random, numbers) for name, value in given.items()
        }
    return given


def first_result(result: Any) -> torch.Tensor:
    """The first tensor of what a module returns: [1, T, ...]."""
    return next(iter(held_tensors(result).values()))
