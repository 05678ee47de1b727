"""Weights with low-rank changes beside them, of which each sequence chooses one or none.

W stands for itself, and with adapter n for W + scale · B·A (Hu et al., arXiv 2106.09685). Passes
that arrange weights see a weight like any other; `attach_adapters` takes the changes out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from graphwright.ir.weights import Expression, Weight

__all__ = [
    "ADAPTERS", "AdaptedWeight", "Adapter", "LowRank", "adapted_leaves", "merged",
    "without_adapters",
]  # fmt: skip

ADAPTERS = "adapters"
"""What stands in tables where other weights have the scheme of a recipe."""


@dataclass(frozen=True)
class Adapter:
    """What is kept of an adapter beside its weights. ranks: from the smallest to the largest."""

    name: str
    source: str
    sha256: str
    modules: int
    ranks: tuple[int, int]


@dataclass(frozen=True, eq=False)
class LowRank:
    """scale · b·a: a [r, inputs], b [outputs, r]."""

    a: Weight
    b: Weight
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def load(self) -> torch.Tensor:
        """The product, float32 [outputs, inputs]."""
        return (self.b.load().float() @ self.a.load().float()) * self.scale


@dataclass(frozen=True, eq=False)
class AdaptedWeight(Weight):
    """`base`, with a change by each adapter of the program, None by one that leaves it.

    turned: it is stored [inputs, outputs].
    """

    base: Weight
    changes: tuple[LowRank | None, ...]
    turned: bool = False

    def load(self) -> torch.Tensor:
        return self.base.load()

    def merged(self, adapter: int) -> torch.Tensor:
        """The values with the change by that adapter, in float32."""
        change, base = self.changes[adapter], self.base.load().float()
        if change is None:
            return base
        return base + (change.load().T if self.turned else change.load())

    def describe(self) -> str:
        return self.base.describe()

    @property
    def scheme(self) -> str | None:
        return self.base.scheme


def adapted_leaves(weight: Weight | None) -> list[AdaptedWeight]:
    """The adapted weights that `weight` is made of."""
    if isinstance(weight, AdaptedWeight):
        return [weight]
    if not isinstance(weight, Expression):
        return []
    leaves = pytree.tree_leaves((weight.args, weight.kwargs))
    return [leaf for each in leaves if isinstance(each, Weight) for leaf in adapted_leaves(each)]


def without_adapters(weight: Weight) -> Weight:
    """`weight` made of the base weights alone."""
    if isinstance(weight, AdaptedWeight):
        return weight.base
    if not isinstance(weight, Expression) or not adapted_leaves(weight):
        return weight
    args, kwargs = _over_weights((weight.args, weight.kwargs), without_adapters)
    return Expression(weight.shape, weight.dtype, weight.function, args, kwargs, weight.output)


def merged(weight: Weight, adapter: int) -> torch.Tensor:
    """The values of `weight` with that adapter's changes in it."""
    if isinstance(weight, AdaptedWeight):
        return weight.merged(adapter)
    if not isinstance(weight, Expression) or not adapted_leaves(weight):
        return weight.load()
    args, kwargs = _over_weights((weight.args, weight.kwargs), lambda each: merged(each, adapter))
    result = weight.function(*args, **kwargs)
    tensor: torch.Tensor = result if weight.output is None else result[weight.output]
    return tensor


def _over_weights(values: Any, change: Callable[[Weight], Any]) -> Any:
    return pytree.tree_map_only(Weight, change, values)
