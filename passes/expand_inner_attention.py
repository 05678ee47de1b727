"""Attention within one token, over its heads or other parts, as products and sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir import ConstantTensor, Program
from graphwright.ir.layout import size_of
from graphwright.passes.base import Pass, Stage
from graphwright.passes.recognize_attention import RecognizeAttention

__all__ = ["ExpandInnerAttention"]

aten = torch.ops.aten
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_PRODUCTS = {aten.matmul.default, aten.bmm.default}


@dataclass(frozen=True)
class ExpandInnerAttention(Pass):
    """sdpa over parts of one token  →  softmax(q·kᵀ * scale + mask)·v;   a·b for each token  →
    sum(unsqueeze(a) * unsqueeze(bᵀ)).

    What is left by recognize-attention works on sizes that are fixed, few heads say, so that
    products are sums of a few terms. Leaves: whatever has the token axis among the two last axes;
    products with a weight; dropout, grouped heads.
    """

    stage: ClassVar[Stage] = Stage.ATTENTION
    after: ClassVar = (RecognizeAttention,)
    optional: ClassVar = False

    def run(self, program: Program) -> int:
        count = 0
        for node in list(program.graph.nodes):
            if node.target is aten.scaled_dot_product_attention.default:
                count += self._expand_attention(program, node)
        for node in list(program.graph.nodes):
            if node.target in _PRODUCTS and _is_inner(*node.args[:2]):
                new = _product(program, node, *node.args[:2])
                new.meta["stack_trace"] = node.meta.get("stack_trace")
                program.replace(node, new)
                count += 1
        return count

    def _expand_attention(self, program: Program, node: fx.Node) -> int:
        given: dict[str, Any] = {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}
        q, k, v = (given[name] for name in _NAMES[:3])
        if not _is_inner(q, k, v):
            return 0
        if given.get("dropout_p") or given.get("enable_gqa"):
            self.miss(f"'{node.name}' attends within a token, with dropout or grouped heads.")
            return 0
        rank, scale = q.meta["val"].dim(), given.get("scale")
        factor = float(q.meta["val"].shape[-1]) ** -0.5 if scale is None else float(scale)
        turned = program.call(node, aten.permute.default, k, [*range(rank - 2), rank - 1, rank - 2])
        scores = program.call(node, aten.matmul.default, q, turned)
        scores = program.call(node, aten.mul.Tensor, scores, factor)
        scores = _masked(program, node, scores, given)
        weights = program.call(node, aten.softmax.int, scores, -1)
        result = program.call(node, aten.matmul.default, weights, v)
        for made in (scores, weights, result):
            made.meta["stack_trace"] = node.meta.get("stack_trace")
        program.replace(node, result)
        return 1


def _masked(program: Program, node: fx.Node, scores: fx.Node, given: dict[str, Any]) -> fx.Node:
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        rows, columns = scores.meta["val"].shape[-2:]
        hidden = torch.ones(int(rows), int(columns), dtype=torch.bool).triu(1)
        made = program.add_weight("inner_mask", ConstantTensor.of(hidden))
        return program.call(node, aten.masked_fill.Scalar, scores, made, float("-inf"))
    if mask is None:
        return scores
    if mask.meta["val"].dtype == torch.bool:
        hide = program.call(node, aten.logical_not.default, mask)
        return program.call(node, aten.masked_fill.Scalar, scores, hide, float("-inf"))
    return program.call(node, aten.add.Tensor, scores, mask)


def _is_inner(*operands: Any) -> bool:
    """Have all operands a token axis, and fixed sizes on the two axes that a product works on?"""
    shapes = [n.meta["val"].shape for n in operands if isinstance(n, fx.Node)]
    return all(
        len(shape) > 2
        and all(isinstance(size_of(size), int) for size in shape[-2:])
        and any(not isinstance(size_of(size), int) for size in shape[:-2])
        for shape in shapes
    )


def _product(program: Program, node: fx.Node, a: Any, b: Any) -> fx.Node:
    """[..., M, K] · [..., K, N] as the sum over the last axis of [..., M, N, K]."""
    rank = b.meta["val"].dim()
    turned = program.call(node, aten.permute.default, b, [*range(rank - 2), rank - 1, rank - 2])
    left = program.call(node, aten.unsqueeze.default, a, a.meta["val"].dim() - 1)
    right = program.call(node, aten.unsqueeze.default, turned, rank - 2)
    terms = program.call(node, aten.mul.Tensor, left, right)
    return program.call(node, aten.sum.dim_IntList, terms, [-1])
