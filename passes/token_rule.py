"""What a rule for the token axis is, and what rules have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of

__all__ = ["MixesTokensError", "TokenAxes", "TokenRule", "along", "argument", "dims_of",
           "first_argument", "from_the_right", "pointwise", "reduction"]  # fmt: skip

TokenAxes = dict[fx.Node, int | None]
TokenRule = Callable[[fx.Node, TokenAxes], int]
"""From a node, at least one of whose inputs has a token axis, to the token axis of its output."""


class MixesTokensError(Exception):
    """Why an op does not keep tokens apart: the end of a sentence about its node."""


def first_argument(node: fx.Node, axes: TokenAxes) -> tuple[torch.Tensor, int]:
    """The first argument and its token axis; no other argument may have one."""
    source: Any = node.args[0]
    axis = axes.get(source)
    others = [n for n in node.all_input_nodes if n is not source and axes[n] is not None]
    if axis is None or others:
        raise MixesTokensError("takes a value for each token where it should not")
    value: torch.Tensor = source.meta["val"]
    return value, axis


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument, wherever it was given."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def pointwise(node: fx.Node, axes: TokenAxes) -> int:
    """Ops that compute each element from those at its place, with broadcasting."""
    found = set()
    for source in node.all_input_nodes:
        axis = axes[source]
        if axis is not None:
            found.add(axis - source.meta["val"].dim())
    if len(found) != 1:
        raise MixesTokensError("combines every token with every other one")
    aligned = found.pop()
    for source in node.all_input_nodes:
        value = source.meta["val"]
        if axes[source] is not None or not isinstance(value, torch.Tensor):
            continue
        if value.dim() >= -aligned and size_of(value.shape[aligned]) != 1:
            raise MixesTokensError(f"gives each token of the step its own part of '{source.name}'")
    return int(node.meta["val"].dim() + aligned)


def along(position: int, default: Any = None) -> TokenRule:
    """Ops that work along one dim (argument `position`) and keep the rank."""

    def rule(node: fx.Node, axes: TokenAxes) -> int:
        value, axis = first_argument(node, axes)
        dim = argument(node, position, "dim", default)
        if axis in dims_of(dim, value.dim()):
            raise MixesTokensError("works along the token axis")
        return axis

    return rule


def reduction(position: int = 1, keepdim: int = 2) -> TokenRule:
    """Ops that reduce over dims (argument `position`)."""

    def rule(node: fx.Node, axes: TokenAxes) -> int:
        value, axis = first_argument(node, axes)
        dims = dims_of(argument(node, position, "dim"), value.dim())
        if axis in dims:
            raise MixesTokensError("reduces over the token axis")
        if argument(node, keepdim, "keepdim", False):
            return axis
        return axis - sum(dim < axis for dim in dims)

    return rule


def dims_of(dims: Any, rank: int) -> list[int]:
    """A dim or dims, counted from the front; none means all."""
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(rank))
    return [int(dim) % rank for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]


def from_the_right(axis: int | None, rank: int) -> int | None:
    """An axis of so many, counted from the last one, which is -1."""
    return None if axis is None else axis - rank
