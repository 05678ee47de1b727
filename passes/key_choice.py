"""What tokens choose keys by: from gw.mark_largest up to the product of index queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from graphwright.ir import PassError, Program
from graphwright.ir.layout import size_of
from graphwright.ir.source import source_line
from graphwright.passes.layout_chains import Atom, Chain, arrange, follow
from graphwright.passes.mask_bias import HIDING, MaskTerm
from graphwright.passes.mask_terms import over_pairs
from graphwright.passes.score_shapes import number_of

__all__ = ["KeyChoice", "find_choice"]

aten = torch.ops.aten
_CASTS = {aten._to_copy.default, aten.clone.default, aten.alias.default, aten.contiguous.default}
_PRODUCTS = {aten.matmul.default, aten.bmm.default}
_FILLS = {aten.masked_fill.Scalar, aten.masked_fill.Tensor}
_SCALES = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}
_Axes = list[list[Atom]]


@dataclass(frozen=True)
class Operand:
    """A value `base` of which `base_axes` are known, and how to lay its axes out."""

    chain: Chain
    wanted: _Axes

    def build(self, program: Program, before: fx.Node) -> fx.Node:
        return arrange(program, before, self.chain.base, self.chain.base_axes, self.wanted)


@dataclass(frozen=True)
class KeyChoice:
    """The `count` keys with the largest Σ over h of weights[t, h] * relu(q[t, h] · k[s]), among
    those that `terms` leave visible."""

    count: int
    terms: tuple[MaskTerm, ...]
    q: Operand
    k: Operand
    weights: Operand

    def build(self, program: Program, before: fx.Node, mask: str) -> fx.Node:
        """gw.choose_keys in front of `before`."""
        operands = [each.build(program, before) for each in (self.q, self.k, self.weights)]
        return program.call(
            before,
            torch.ops.gw.choose_keys.default,
            *operands,
            program.placeholder("positions"),
            count=self.count,
            mask=mask,
        )


def find_choice(program: Program, marked: fx.Node, content_free: set[fx.Node]) -> KeyChoice:
    """The choice that `marked`, a gw.mark_largest, makes of scores over queries and keys.

    Raises PassError where they are not such scores, naming the node.
    """
    return _ChoiceWalk(program, marked, content_free).choice()


@dataclass
class _ChoiceWalk:
    """Up from the scores that are compared. Axes are followed on the way: those of the query and of
    the key, and between the sum over heads and the product that of the heads."""

    program: Program
    marked: fx.Node
    content_free: set[fx.Node]
    factor: float = 1.0
    terms: list[MaskTerm] = field(default_factory=list)

    def choice(self) -> KeyChoice:
        scores: Any = self.marked.args[0]
        shape = scores.meta["val"].shape
        if not over_pairs(scores) or any(size != 1 for size in shape[:-2]):
            raise self._error(scores, f"{tuple(shape)} is not one value for each query and key")
        query, key = ([Atom(size_of(size))] for size in shape[-2:])
        axes = [*([] for _ in shape[:-2]), query, key]
        summed = self._to_sum(_chain(scores, axes), query, key)
        terms, self.terms = tuple(self.terms), []
        products, heads, weights = self._factors(summed, query, self._heads(summed.base))
        product = self._to_product(products)
        if self.terms:
            raise self._error(self.terms[0].node, "hides keys before heads are summed")
        q, k = self._operands(product, query, key, heads)
        return KeyChoice(int(self.marked.kwargs["k"]), terms, q, k, weights)  # type: ignore[arg-type]

    def _error(self, node: fx.Node, why: str) -> PassError:
        return PassError(
            f"the keys that '{self.marked.name}' chooses are not chosen by scores of queries and "
            f"keys that can be cached: '{node.name}' {why}{source_line(node)}."
        )

    # ---- one value a query and key

    def _to_sum(self, chain: Chain, query: list[Atom], key: list[Atom]) -> Chain:
        """Up to the sum over heads, through what hides keys and positive factors."""
        while True:
            follow(chain)
            node: Any = chain.base
            if node.target in _PRODUCTS or node.target is aten.sum.dim_IntList:
                return chain
            known = len(self.terms)
            self._step(chain, self._inside(node))
            if len(self.terms) > known and chain.base_axes[-2:] != [query, key]:
                raise self._error(node, "hides keys where they are not the last axis")

    def _step(self, chain: Chain, source: fx.Node) -> None:
        """From the base of `chain` to `source`, of which it has the shape, but for leading ones."""
        node = chain.base
        shapes = [[size_of(s) for s in each.meta["val"].shape] for each in (node, source)]
        added = len(shapes[0]) - len(shapes[1])
        if added < 0 or shapes[0] != [*[1] * added, *shapes[1]]:
            raise self._error(node, "repeats the scores")
        chain.base, chain.base_axes = source, chain.base_axes[added:]

    def _inside(self, node: fx.Node) -> fx.Node:
        """What `node`, an op on scores that changes no order among the visible keys, works on."""
        first: Any = node.args[0] if node.args else None
        if node.target in _CASTS:
            return first  # type: ignore[no-any-return]
        if node.target in _SCALES:
            return self._scaled(node)
        if node.target in _FILLS:
            return self._filled(node, "hide", node.args[1], first, node.args[2])
        if node.target in (aten.where.self, aten.where.ScalarOther):
            return self._filled(node, "keep", first, node.args[1], node.args[2])
        if node.target is aten.where.ScalarSelf:
            return self._filled(node, "hide", first, node.args[2], node.args[1])
        if node.target is aten.add.Tensor and not node.kwargs:
            for scores, bias in (node.args[:2], node.args[1::-1]):
                if bias in self.content_free and isinstance(scores, fx.Node):
                    self.terms.append(MaskTerm("add", bias, self.factor))  # type: ignore[arg-type]
                    return scores
        raise self._error(node, f"({node.target}) is none of the ops that are known there")

    def _scaled(self, node: fx.Node) -> fx.Node:
        divides = node.target in (aten.div.Tensor, aten.div.Scalar)
        for scores, value in (node.args[:2], node.args[1::-1])[: 1 if divides else 2]:
            number = number_of(self.program, value)
            if number is not None and isinstance(scores, fx.Node):
                if not 0 < number < math.inf:
                    raise self._error(node, f"multiplies the scores by {number}")
                self.factor *= 1 / number if divides else number
                return scores
        raise self._error(node, "multiplies the scores by something that is no constant")

    def _filled(self, node: fx.Node, kind: str, condition: Any, scores: Any, fill: Any) -> fx.Node:
        number = number_of(self.program, fill)
        if number is None or number * self.factor > HIDING:
            raise self._error(node, f"fills scores with {fill}, which hides no key")
        if condition not in self.content_free:
            raise self._error(node, "hides keys by the content of the tokens")
        self.terms.append(MaskTerm(kind, condition))
        return scores  # type: ignore[no-any-return]

    # ---- the sum over heads

    def _heads(self, node: fx.Node) -> list[Atom]:
        """The axis that `node` sums over."""
        source: Any = node.args[0]
        shape = source.meta["val"].shape
        dims: Any = [-1] if node.target in _PRODUCTS else node.args[1]
        if len(dims) != 1 or not isinstance(shape[dims[0]], int):
            raise self._error(node, "is no sum over heads")
        return [Atom(int(shape[dims[0]]))] if shape[dims[0]] != 1 else []

    def _factors(
        self, chain: Chain, query: list[Atom], heads: list[Atom]
    ) -> tuple[Chain, list[Atom], Operand]:
        """(products of each head, their axis of heads, weights of each token and head) that the
        base of `chain` sums."""
        node: Any = chain.base
        own, other = list(heads), list(heads)
        if node.target in _PRODUCTS:
            left, right = node.args
            if left.meta["val"].shape[-2] != 1:
                raise self._error(node, "does not sum with one weight for each token and head")
            *outer, _, last = chain.base_axes
            weights = _chain(left, [*_broadcast(left, outer), [], own])
            products = _chain(right, [*_broadcast(right, outer), other, last])
        else:
            weights, products = self._summed(node, chain, own, other)
        if {*_atoms(follow(weights).base_axes)} != {*query, *own}:
            raise self._error(node, "weighs heads by something else than the token")
        return products, other, Operand(weights, [query, own])

    def _summed(
        self, node: Any, chain: Chain, own: list[Atom], other: list[Atom]
    ) -> tuple[Chain, Chain]:
        """(weights, products) of Σ weights * products over one axis."""
        product, dims = node.args[:2]
        keeps = bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
        rank = product.meta["val"].dim()
        at = int(dims[0]) % rank
        axes = [
            [*chain.base_axes[:at], heads, *chain.base_axes[at + keeps :]] for heads in (own, other)
        ]
        if product.target is aten.mul.Tensor:
            for weights, products in (product.args, product.args[::-1]):
                shape = weights.meta["val"].shape
                if len(shape) == rank and shape[-1] == 1:
                    return _chain(weights, _own(weights, axes[0])), _chain(
                        products, _own(products, axes[1])
                    )
        raise self._error(product, "does not weigh heads by the token")

    # ---- one value a query, head and key

    def _to_product(self, chain: Chain) -> Chain:
        """Up to the product of queries and keys, through one relu."""
        activated = False
        while True:
            follow(chain)
            node: Any = chain.base
            if node.target in _PRODUCTS:
                if not activated:
                    raise self._error(node, "is not followed by relu")
                return chain
            relu = self._is_relu(node)
            if relu and activated:
                raise self._error(node, "is a second relu")
            activated |= relu
            self._step(chain, node.args[0] if relu else self._inside(node))

    def _is_relu(self, node: fx.Node) -> bool:
        if node.target is aten.relu.default:
            return True
        least = node.target is aten.clamp.default and (*node.args, None, None)[2] is None
        return (least or node.target is aten.clamp_min.default) and (
            number_of(self.program, node.args[1]) == 0
        )

    def _operands(
        self, chain: Chain, query: list[Atom], key: list[Atom], heads: list[Atom]
    ) -> tuple[Operand, Operand]:
        """q and k of the product that is the base of `chain`."""
        node: Any = chain.base
        left, right = node.args
        *outer, rows, columns = chain.base_axes
        channels = [[Atom(int(left.meta["val"].shape[-1]))] for _ in range(2)]
        q = _chain(left, [*_broadcast(left, outer), list(rows), channels[0]])
        shared = [list(axis) for axis in _broadcast(right, outer)]
        k = _chain(right, [*shared, channels[1], list(columns)])
        in_order = [atom for atom in _atoms(chain.base_axes) if atom in heads] == heads
        if not in_order or {*_atoms(follow(q).base_axes)} != {*query, *heads, *channels[0]}:
            raise self._error(node, "does not multiply queries of one token, of as many heads")
        kept = {*_atoms(follow(k).base_axes)}
        parts = [atom for atom in _atoms(shared) if atom not in query]
        own = [atom for atom in parts if atom in kept]
        if kept != {*key, *own, *channels[1]} or own != parts[: len(own)] or columns != key:
            raise self._error(node, "does not multiply by keys of other tokens that can be cached")
        return Operand(q, [query, heads, channels[0]]), Operand(k, [key, own, channels[1]])


def _atoms(axes: _Axes) -> list[Atom]:
    return [atom for axis in axes for atom in axis]


def _chain(node: fx.Node, axes: _Axes) -> Chain:
    """`node` with these axes, to be followed; where the walk splits an axis, its list shows it."""
    return Chain(node, [list(axis) for axis in axes], axes, set(), 0)


def _broadcast(node: fx.Node, outer: _Axes) -> _Axes:
    """The axes of `node`, of a product, in front of its last two."""
    own = node.meta["val"].shape[:-2]
    here = outer[len(outer) - len(own) :]
    return [[] if size == 1 else axis for size, axis in zip(own, here, strict=True)]


def _own(node: fx.Node, axes: _Axes) -> _Axes:
    """Those of `axes` along which `node` is not repeated."""
    shape = node.meta["val"].shape
    own = axes[len(axes) - len(shape) :]
    return [[] if size == 1 else axis for size, axis in zip(shape, own, strict=True)]
