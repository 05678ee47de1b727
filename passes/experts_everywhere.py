"""Experts that all tokens pass through, scaled by scores that are zero for all but a few.

Such a block lays its values out expert by expert, [E, T, ...] or [E·T, ...], and adds up all
experts in the end. Where the scores of the experts that a token did not choose are provably zero,
and what follows takes zeros to zeros, only the chosen ones count.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.levels import POINTWISE
from graphwright.ir.program import Program
from graphwright.ir.weights import Expression
from graphwright.passes.zero_experts import Unchosen

__all__ = ["route_chosen", "turned_weight"]

aten, gw = torch.ops.aten, torch.ops.gw


class _CannotError(Exception):
    """Why a sum over experts cannot be one over the chosen ones."""


def turned_weight(program: Program, weight: fx.Node, known: dict[str, fx.Node]) -> fx.Node:
    """The weight [E, K, N] as [E, N, K]: lazily, and once."""
    name = str(weight.target)
    if name not in known:
        source = program.weights[name]
        known[name] = program.add_weight(
            name, Expression.of(aten.permute.default, source, [0, 2, 1])
        )
    return known[name]


def route_chosen(program: Program, turned: dict[str, fx.Node], miss: Callable[[str], None]) -> int:
    """Σ_e over values [E, T, ...]  →  Σ_s over the slots of each token, [T, S, ...].

    Returns how many sums were replaced; `miss` gets the reasons why one was not.
    """
    count = 0
    for node in list(program.graph.nodes):
        product = _product_below(program, node)
        if product is None:
            continue
        try:
            new = _sum_of_chosen(program, node, turned)
        except _CannotError as reason:
            miss(f"'{node.name}' sums '{product.name}' over all experts: {reason}.")
            continue
        program.replace(node, new)
        count += 1
    return count


def _product_below(program: Program, node: fx.Node) -> fx.Node | None:
    """The product by every expert's matrix that `node` sums, if it is such a sum."""
    if node.target is not aten.sum.dim_IntList or node.args[1:] != ([0],) or node.kwargs:
        return None
    waiting: list[Any] = [node.args[0]]
    for source in waiting:
        if source.target in (aten.bmm.default, aten.matmul.default):
            weight = program.weight_of(source.args[1])
            if weight is not None and len(weight.shape) == 3:
                found: fx.Node = source
                return found
        elif source.op == "call_function" and source.target not in _LEAVES:
            waiting.extend(item for item in source.all_input_nodes if item not in waiting)
    return None


def _sum_of_chosen(program: Program, node: fx.Node, turned: dict[str, fx.Node]) -> fx.Node:
    source: Any = node.args[0]
    reasons = []
    for experts in _choices(source):
        unchosen = Unchosen(program, experts).value(source)
        if unchosen != 0:
            reasons.append(f"what '{experts.name}' does not choose is not provably zero")
            continue
        chosen = _Chosen(program, node, experts, turned)
        if chosen.lead(source) != 2:
            raise _CannotError("it sums tokens too")
        result = program.call(node, aten.sum.dim_IntList, chosen.value(source), [1])
        result.meta["stack_trace"] = node.meta.get("stack_trace", "")
        return result
    raise _CannotError(reasons[0] if reasons else "nothing chooses among the experts")


def _choices(node: fx.Node) -> Iterator[fx.Node]:
    """The places [T, S] that gw.top_k chose somewhere above `node`, the nearest first."""
    seen, waiting = {node}, [node]
    for here in waiting:
        if here.target is operator.getitem and here.args[1] == 1:
            choice: Any = here.args[0]
            if choice.target is gw.top_k.default and here.meta["val"].dim() == 2:
                yield here
        fresh = [item for item in here.all_input_nodes if item not in seen]
        seen.update(fresh)
        waiting.extend(fresh)


class _Chosen:
    """Values [E, T, ...] or [E·T, ...] as [T, S, ...], for the chosen experts only."""

    def __init__(
        self, program: Program, before: fx.Node, experts: fx.Node, turned: dict[str, fx.Node]
    ) -> None:
        self.program = program
        self.before = before
        self.experts = experts
        self.turned = turned
        self.count = int(experts.args[0].args[0].meta["val"].shape[-1])  # type: ignore[union-attr]
        self.slots = int(experts.meta["val"].shape[1])
        self.tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
        self.known: dict[fx.Node, fx.Node] = {}

    def value(self, node: fx.Node) -> fx.Node:
        """`node` for each token's chosen experts. Raises _CannotError."""
        if node not in self.known:
            rule = _LEAVES.get(node.target) or _RULES.get(node.target)
            if rule is None and str(node.target).removeprefix("aten.") in POINTWISE:
                rule = _pointwise
            if rule is None:
                raise _CannotError(f"'{node.name}' is {node.target} over experts")
            rest = self.rest(node)
            new = rule(self, node)
            new.meta.setdefault("stack_trace", node.meta.get("stack_trace", ""))
            shape = [size_of(size) for size in new.meta["val"].shape]
            if shape != [self.tokens, self.slots, *rest]:
                raise _CannotError(f"'{node.name}' came apart as {tuple(shape)}")
            self.known[node] = new
        return self.known[node]

    def lead(self, node: fx.Node) -> int:
        """How many axes count experts and tokens: 1 for [E·T, ...], 2 for [E, T, ...]."""
        shape = [size_of(size) for size in node.meta["val"].shape]
        if shape[:2] == [self.count, self.tokens]:
            return 2
        if shape and shape[0] == self.count * self.tokens:
            return 1
        raise _CannotError(f"'{node.name}' {tuple(shape)} is not laid out by experts")

    def rest(self, node: fx.Node) -> list[int]:
        """The sizes behind experts and tokens."""
        return [int(size) for size in node.meta["val"].shape[self.lead(node) :]]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call in front of the sum."""
        return self.program.call(self.before, target, *args, **kwargs)


def _pointwise(chosen: _Chosen, node: fx.Node) -> fx.Node:
    rest = chosen.rest(node)
    swap: dict[fx.Node, fx.Node] = {}
    for source in node.all_input_nodes:
        shape = source.meta["val"].shape
        if not any(isinstance(size, torch.SymInt) for size in shape):
            if len(shape) > len(rest):
                raise _CannotError(f"'{source.name}' differs between experts")
            continue
        if len(chosen.rest(source)) != len(rest) or chosen.lead(source) != chosen.lead(node):
            raise _CannotError(f"'{node.name}' broadcasts '{source.name}'")
        swap[source] = chosen.value(source)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda item: swap.get(item, item))
    return chosen.call(node.target, *args, **kwargs)


def _reshape(chosen: _Chosen, node: fx.Node) -> fx.Node:
    inner = chosen.value(node.args[0])  # type: ignore[arg-type]
    return chosen.call(aten.reshape.default, inner, [-1, chosen.slots, *chosen.rest(node)])


def _slice(chosen: _Chosen, node: fx.Node) -> fx.Node:
    source: Any = node.args[0]
    lead, dim = chosen.lead(source), node.args[1]
    if not isinstance(dim, int) or dim < lead:
        raise _CannotError(f"'{node.name}' takes some experts or tokens")
    inner = chosen.value(source)
    return chosen.call(aten.slice.Tensor, inner, dim + 2 - lead, *node.args[2:])


def _product(chosen: _Chosen, node: fx.Node) -> fx.Node:
    """x [E, T, K] · weight [E, K, N]: each slot's row by its expert's matrix."""
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    if chosen.program.weight_of(weight) is None or chosen.lead(x) != 2:
        raise _CannotError(f"'{node.name}' is no product by a weight of each expert")
    turned = turned_weight(chosen.program, weight, chosen.turned)
    return chosen.call(gw.routed_linear.default, chosen.value(x), chosen.experts, turned)


def _repeat(chosen: _Chosen, node: fx.Node) -> fx.Node:
    """Every expert reads all rows [T, ...]."""
    source, counts = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(counts, (list, tuple))
    shape = [size_of(size) for size in source.meta["val"].shape]
    if list(counts) != [chosen.count, *[1] * (len(shape) - 1)] or shape[0] != chosen.tokens:
        raise _CannotError(f"'{node.name}' repeats something else than the tokens")
    wide = chosen.call(aten.unsqueeze.default, source, 1)
    return chosen.call(aten.expand.default, wide, [-1, chosen.slots, *shape[1:]])


def _expand(chosen: _Chosen, node: fx.Node) -> fx.Node:
    """Every expert reads all rows [1, T, ...]."""
    source: Any = node.args[0]
    shape = [size_of(size) for size in source.meta["val"].shape]
    rest = chosen.rest(node)
    if shape != [1, chosen.tokens, *rest]:
        raise _CannotError(f"'{node.name}' repeats something else than the tokens")
    wide = chosen.call(aten.reshape.default, source, [-1, 1, *rest])
    return chosen.call(aten.expand.default, wide, [-1, chosen.slots, *rest])


def _scores(chosen: _Chosen, node: fx.Node) -> fx.Node:
    """Scores [T, E], turned to [E, T]: those of the chosen experts."""
    source: Any = node.args[0]
    shape = [size_of(size) for size in source.meta["val"].shape]
    if list(node.args[1]) != [1, 0] or shape != [chosen.tokens, chosen.count]:  # type: ignore[arg-type]
        raise _CannotError(f"'{node.name}' turns something else than scores")
    return chosen.call(aten.gather.default, source, 1, chosen.experts)


_LEAVES: dict[Any, Callable[[_Chosen, fx.Node], fx.Node]] = {
    aten.repeat.default: _repeat,
    aten.expand.default: _expand,
    aten.permute.default: _scores,
}
_RULES: dict[Any, Callable[[_Chosen, fx.Node], fx.Node]] = {
    aten.reshape.default: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.slice.Tensor: _slice,
    aten.bmm.default: _product,
    aten.matmul.default: _product,
}
