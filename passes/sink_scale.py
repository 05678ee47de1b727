"""Sinks that are spelled as a factor on what attention returns.

softmax(s) · v * sigmoid(logsumexp(s) - sink) is exp(s) / (sum(exp(s)) + exp(sink)) · v: the softmax
with one more column of logits `sink`, which is left out of the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of

__all__ = ["SinkScale", "find_sink_scale"]

aten = torch.ops.aten
_CASTS = {aten._to_copy.default, aten.clone.default, aten.alias.default, aten.contiguous.default}
_KEEPING_SIZES = {aten.unsqueeze.default, aten.reshape.default}
_OF_LOGSUMEXP = _CASTS | _KEEPING_SIZES | {
    aten.amax.default, aten.abs.default, aten.eq.Scalar, aten.masked_fill.Scalar,
    aten.where.ScalarSelf, aten.squeeze.dims, aten.squeeze.dim, aten.sub.Tensor, aten.exp.default,
    aten.sum.dim_IntList, aten.log.default, aten.add.Tensor, aten.logsumexp.default,
}  # fmt: skip
_MOST_NODES = 24

SinkScale = tuple[fx.Node, fx.Node]
"""The product with the factor, and the sinks [..., H, 1] or [..., H, 1, 1]."""


def find_sink_scale(product: fx.Node, scores: fx.Node) -> SinkScale | None:
    """Is the attention `product` [..., T, Dv] of softmax(`scores` [..., T, T]) only used times
    sigmoid(logsumexp(scores) - sinks)?"""
    last, users = product, list(product.users)
    while len(users) == 1 and users[0].target in _CASTS:
        last, users = users[0], list(users[0].users)
    if len(users) != 1 or users[0].target is not aten.mul.Tensor:
        return None
    scaled = users[0]
    factors = [factor for factor in scaled.args[:2] if factor is not last]
    rows = _sizes(product)[:-1]
    if len(factors) != 1 or _sizes(scaled) != _sizes(product) or _sizes(factors[0]) != [*rows, 1]:
        return None
    gate = _without(factors[0], _CASTS | _KEEPING_SIZES)
    if gate.target is not aten.sigmoid.default or _sizes(gate) not in (rows, [*rows, 1]):
        return None
    difference = _without(gate.args[0], _CASTS)
    if difference.target is not aten.sub.Tensor or difference.kwargs.get("alpha", 1) != 1:
        return None
    total, sinks = difference.args[:2]
    if not isinstance(total, fx.Node) or not isinstance(sinks, fx.Node):
        return None
    token_axis = len(rows) - 1 - len(_sizes(gate))
    if _sizes(total) != _sizes(gate) or _sizes(sinks)[token_axis:] != [1] * -token_axis:
        return None
    return (scaled, sinks) if _is_logsumexp(total, scores) else None


def _sizes(node: Any) -> list[Any]:
    value = node.meta["val"] if isinstance(node, fx.Node) else torch.empty(())
    return [size_of(size) for size in value.shape]


def _without(node: Any, targets: set[Any]) -> fx.Node:
    while node.target in targets:
        node = node.args[0]
    return node  # type: ignore[no-any-return]


def _is_logsumexp(node: fx.Node, scores: fx.Node) -> bool:
    """Is `node` logsumexp(scores, -1)? It is made of a few known ops and has the same values."""
    between = _between(node, scores)
    leading = _sizes(scores)[:-2]
    if between is None or not all(isinstance(size, int) for size in leading):
        return False
    generator = torch.Generator().manual_seed(0)
    for length, spread in ((1, 1.0), (5, 1.0), (7, 30.0)):
        sample = spread * torch.randn(*leading, length, length, generator=generator)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        for hide in (float("-inf"), torch.finfo(torch.float32).min):
            given = sample.masked_fill(hidden, hide)
            want = given.logsumexp(-1, keepdim=len(_sizes(node)) == len(leading) + 2)
            got = _run(between, scores, given)
            if got.shape != want.shape or not torch.allclose(got, want, rtol=1e-5, atol=1e-5):
                return False
    return True


def _between(node: fx.Node, scores: fx.Node) -> list[fx.Node] | None:
    """The nodes from `scores` to `node` in order; None when there are others than known ones."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        each = stack.pop()
        if each is scores or each in found:
            continue
        if each.target not in _OF_LOGSUMEXP or len(found) == _MOST_NODES:
            return None
        found.add(each)
        stack += each.all_input_nodes
    return sorted(found)


def _run(nodes: list[fx.Node], scores: fx.Node, sample: torch.Tensor) -> torch.Tensor:
    values = {scores: sample}
    for node in nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        function: Any = node.target
        values[node] = function(*args, **kwargs)
    return values[nodes[-1]]
