"""Attention written out: from its softmax up to the product of q and k."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.ir import Program
from graphwright.ir.layout import size_of
from graphwright.passes.attention_operands import AttentionCore, NoCoreError, no_attention
from graphwright.passes.layout_chains import is_layout_op, trace
from graphwright.passes.mask_bias import HIDING, MaskTerm
from graphwright.passes.score_shapes import (
    CASTS,
    PRODUCTS,
    heads_among_queries,
    is_row_maximum,
    number_of,
    over_tokens,
    same_shape,
)
from graphwright.passes.sink_scale import find_sink_scale
from graphwright.passes.weights_walk import find_values

__all__ = ["SoftmaxWalk"]

aten = torch.ops.aten
_MARKS = torch.ops.gw.mark_largest.default  # hides keys, whatever products it compares
_NO_LEAD = "does not lead to a product of queries and keys"
_FLOOR = -1e30  # no score that counts is below this


class SoftmaxWalk:
    """Up from a softmax to q · kᵀ; `core` is what is found there, and below the softmax."""

    def __init__(self, program: Program, root: fx.Node, content_free: set[fx.Node]) -> None:
        self._program = program
        self._root = root
        self._free = content_free
        self._factor = 1.0
        self._core = AttentionCore(root, root, root, root, 1.0)

    def core(self) -> AttentionCore:
        self._rescaled()
        node: Any = self._root.args[0]
        above: fx.Node | None = node
        while above is not None:
            node = above
            above = self._up(node)
        self._core.scale = self._factor
        self._core.k_transposed = True
        find_values(self._program, self._root, self._core)
        return self._core

    def _fail(self, node: fx.Node, why: str) -> NoCoreError:
        return no_attention(self._root, node, why)

    def _rescaled(self) -> None:
        """Sinks that follow the product with v; what shifts the scores is not skipped then."""
        node, scores = self._root, self._root.args[0]
        while len(node.users) == 1 and next(iter(node.users)).target in CASTS:
            node = next(iter(node.users))
        for product in node.users:
            if product.target in PRODUCTS and product.args[0] is node:
                found = find_sink_scale(product, scores)  # type: ignore[arg-type]
                if found is not None:
                    self._core.rescaled, self._core.sinks = found

    def _up(self, node: fx.Node) -> fx.Node | None:
        """One step towards the product; None when `node` is the product of q and k."""
        target = node.target
        first: Any = node.args[0] if node.args else None
        if target in PRODUCTS:
            self._core.q, self._core.k = self._unscaled(node.args[0]), self._unscaled(node.args[1])
            return None
        if target is aten.baddbmm.default:
            self._add(first, self._factor * float(node.kwargs.get("beta", 1)))  # type: ignore[arg-type]
            self._factor *= float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
            self._core.q, self._core.k = self._unscaled(node.args[1]), self._unscaled(node.args[2])
            return None
        if target in CASTS or (target is aten.expand.default and same_shape(first, node)):
            return first  # type: ignore[no-any-return]
        if is_layout_op(node):
            return self._up_layout(node)
        if target is aten.tanh.default:
            if self._core.softcap:
                raise self._fail(node, "caps the scores a second time")
            self._core.softcap = self._factor
            return first  # type: ignore[no-any-return]
        steps = {
            aten.add.Tensor: self._up_add, aten.sub.Tensor: self._up_sub,
            aten.mul.Tensor: self._up_mul, aten.div.Tensor: self._up_mul,
            aten.mul.Scalar: self._up_mul, aten.div.Scalar: self._up_mul,
            aten.add.Scalar: self._up_shift, aten.sub.Scalar: self._up_shift,
            aten.cat.default: self._up_sinks,
            aten.where.self: self._up_where, aten.where.ScalarOther: self._up_where,
            aten.where.ScalarSelf: self._up_where,
            aten.masked_fill.Scalar: self._up_fill, aten.masked_fill.Tensor: self._up_fill,
            aten.maximum.default: self._up_floor, aten.clamp_min.default: self._up_floor,
        }  # fmt: skip
        if target not in steps:
            raise self._fail(node, f"({target}) {_NO_LEAD}")
        return steps[target](node)

    def _up_layout(self, node: fx.Node) -> fx.Node:
        """To what `node` rearranges. Heads may lie in front of the queries in one axis there."""
        chain = trace(node, repeats=False)
        if chain.base is node:
            raise self._fail(node, f"({node.target}) {_NO_LEAD}")
        heads = heads_among_queries(chain.base_axes, chain.axes)
        if heads is None:
            raise self._fail(node, f"({node.target}) moves heads, queries or keys among the scores")
        self._core.folded = heads + self._core.folded
        return chain.base

    def _unscaled(self, node: Any) -> fx.Node:
        """What queries or keys are before a number multiplies them: it belongs to the scale."""
        while node.target in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
            factor = self._number(node.args[1])
            if factor is None or not same_shape(node.args[0], node):
                break
            divides = node.target in (aten.div.Tensor, aten.div.Scalar)
            self._factor *= 1 / factor if divides else factor
            node = node.args[0]
        return node  # type: ignore[no-any-return]

    def _up_shift(self, node: fx.Node) -> fx.Node:
        if self._core.softcap:
            raise self._fail(node, "shifts the scores inside the cap")
        if self._core.sinks is not None:
            raise self._fail(node, "shifts the scores, but not the sinks")
        return node.args[0]  # type: ignore[return-value]

    def _up_add(self, node: fx.Node) -> fx.Node:
        left, right = node.args[:2]
        alpha: Any = node.kwargs.get("alpha", 1)
        if not isinstance(right, fx.Node):
            return self._up_shift(node)
        if alpha == 1 and not self._holds_product(left) and self._holds_product(right):
            left, right = right, left
        self._add(right, self._factor * float(alpha))  # type: ignore[arg-type]
        return left  # type: ignore[return-value]

    def _up_sub(self, node: fx.Node) -> fx.Node:
        left, right = node.args[:2]
        if not isinstance(right, fx.Node):
            return self._up_shift(node)
        if is_row_maximum(right, left) and self._core.sinks is None:
            return left  # type: ignore[return-value]
        self._add(right, -self._factor * float(node.kwargs.get("alpha", 1)))  # type: ignore[arg-type]
        return left  # type: ignore[return-value]

    def _add(self, node: fx.Node, factor: float) -> None:
        if self._core.softcap:
            raise self._fail(node, "is added inside the cap")
        if factor == 0:
            return
        if self._core.folded:
            raise self._fail(node, "is added where several heads share the axis of the queries")
        if self._holds_product(node):
            raise self._fail(node, "is a second product among the scores")
        self._core.terms.append(MaskTerm("add", node, factor))

    def _holds_product(self, root: Any) -> bool:
        """Is a product over (query, key) computed on the way to `root`, by nodes of that shape?"""
        stack, seen = [root], set()
        while stack:
            node = stack.pop()
            if node in seen or node in self._free or node.target is _MARKS:
                continue
            seen.add(node)
            value = node.meta["val"]
            if not isinstance(value, torch.Tensor) or value.dim() < 2:
                continue
            if size_of(value.shape[-1]) != size_of(value.shape[-2]):
                continue
            if node.target in PRODUCTS or node.target is aten.baddbmm.default:
                return True
            stack += node.all_input_nodes
        return False

    def _up_mul(self, node: fx.Node) -> fx.Node:
        divides = node.target in (aten.div.Tensor, aten.div.Scalar)
        left: Any = node.args[0]
        right: Any = node.args[1]
        factor = self._number(right)
        if factor is None and not divides:
            factor, left, right = self._number(left), right, left
        if factor is not None:
            self._factor = self._factor / factor if divides else self._factor * factor
            return left  # type: ignore[no-any-return]
        for scores, marks in ((left, right), (right, left)):
            usable = not divides and not self._core.folded
            if usable and marks in self._free and over_tokens(marks):
                self._core.terms.append(MaskTerm("times", marks))
                return scores  # type: ignore[no-any-return]
        raise self._fail(node, "multiplies the scores by something that is no constant")

    def _number(self, value: Any) -> float | None:
        return number_of(self._program, value)

    def _up_where(self, node: fx.Node) -> fx.Node:
        condition, left, right = node.args[:3]
        for kind, scores, fill in (("keep", left, right), ("hide", right, left)):
            number = self._number(fill)
            if number is not None and number * self._factor <= HIDING:
                return self._hide(kind, condition, scores, node)
        raise self._fail(node, "chooses between two values, neither of which hides a key")

    def _up_fill(self, node: fx.Node) -> fx.Node:
        number = self._number(node.args[2])
        if number is None or number * self._factor > HIDING:
            raise self._fail(node, f"fills scores with {node.args[2]}, which hides no key")
        return self._hide("hide", node.args[1], node.args[0], node)

    def _up_floor(self, node: fx.Node) -> fx.Node:
        """max(scores, lowest): keeps sums of lowest values finite, and changes nothing else."""
        number = self._number(node.args[1])
        if number is None or number * self._factor > _FLOOR or self._core.softcap:
            raise self._fail(node, f"bounds the scores by {node.args[1]}")
        return node.args[0]  # type: ignore[return-value]

    def _hide(self, kind: str, condition: Any, scores: Any, node: fx.Node) -> fx.Node:
        if self._core.softcap:
            raise self._fail(node, "hides keys inside the cap")
        if self._core.folded:
            raise self._fail(node, "hides keys where several heads share the axis of the queries")
        self._core.terms.append(MaskTerm(kind, condition))
        return scores  # type: ignore[no-any-return]

    def _up_sinks(self, node: fx.Node) -> fx.Node:
        parts: Any = node.args[0]
        dim: Any = node.args[1] if len(node.args) > 1 else 0
        rank = node.meta["val"].dim()
        plain = not self._core.terms and not self._core.folded and self._factor == 1
        if len(parts) != 2 or dim % rank != rank - 1 or not plain:
            raise self._fail(node, "joins scores in an unknown way")
        scores, sinks = parts
        if self._core.sinks is not None or sinks.meta["val"].shape[-1] != 1:
            raise self._fail(node, "joins scores in an unknown way")
        self._core.sinks = sinks
        return scores  # type: ignore[no-any-return]
