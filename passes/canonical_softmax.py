"""Canonical spellings of softmax and its logarithm. Each rule returns the new node, or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.ir.program import Program
from graphwright.passes.canonical_layout import same_value

__all__ = ["SOFTMAX_RULES"]

aten = torch.ops.aten


def _softmax(program: Program, node: fx.Node) -> fx.Node | None:
    if node.args[2]:
        return None
    return same_value(program, node, aten.softmax.int, *node.args[:2])


def _log_softmax(program: Program, node: fx.Node) -> fx.Node | None:
    """log_softmax(x)  →  y - log(sum(exp(y))) with y = x - max(x), or log(softmax(x)) where only
    its exponential is asked for. Leaves other axes than the last, and another dtype."""
    x, dim, *more = node.args
    last = isinstance(dim, int) and dim in (-1, node.meta["val"].dim() - 1)
    if not last or any(more) or any(node.kwargs.values()):
        return None
    if all(user.target is aten.exp.default for user in node.users):
        weights = program.call(node, aten.softmax.int, x, dim)
        return same_value(program, node, aten.log.default, weights)
    below = program.call(
        node, aten.sub.Tensor, x, program.call(node, aten.amax.default, x, [dim], True)
    )
    total = program.call(
        node, aten.sum.dim_IntList, program.call(node, aten.exp.default, below), [dim], True
    )
    return same_value(
        program, node, aten.sub.Tensor, below, program.call(node, aten.log.default, total)
    )


def _exp(program: Program, node: fx.Node) -> fx.Node | None:
    """exp(log(p))  →  p, where p is a softmax."""
    logarithm: Any = node.args[0]
    if logarithm.target is not aten.log.default:
        return None
    weights = logarithm.args[0]
    return weights if weights.target is aten.softmax.int else None  # type: ignore[no-any-return]


def _normalized(program: Program, node: fx.Node) -> fx.Node | None:
    """exp(x) / sum(exp(x))  →  softmax(x), which takes off the maximum."""
    parts, total = node.args[:2]
    if node.kwargs or not isinstance(total, fx.Node) or not isinstance(parts, fx.Node):
        return None
    summed = [*total.args, *[None, False][max(len(total.args) - 1, 0) :]]
    if total.target is not aten.sum.dim_IntList or parts.target is not aten.exp.default:
        return None
    dims: Any = summed[1]
    keeps = summed[2] or total.kwargs.get("keepdim")
    if summed[0] is not parts or not dims or len(dims) != 1 or not keeps:
        return None
    return same_value(program, node, aten.softmax.int, parts.args[0], dims[0])


SOFTMAX_RULES: dict[Any, Callable[[Program, fx.Node], fx.Node | None]] = {
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
    aten.log_softmax.int: _log_softmax,
    aten.exp.default: _exp,
    aten.div.Tensor: _normalized,
}
