"""Computing at compile time what depends on weights and constants only."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch.utils import _pytree as pytree

from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor, Expression, Weight
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.canonicalize_ops import CanonicalizeOps
from graphwright.passes.constant_conditions import settle_conditions
from graphwright.passes.drop_no_ops import same_kind

__all__ = ["FoldConstants"]

aten = torch.ops.aten
_EVALUATED_BYTES = 1 << 16  # a folded value below this is computed at once
_GROWTH = 16  # a folded value may be this many times its inputs, or _EVALUATED_BYTES
# Ops whose operand, when it is a constant of one element, may be a number instead: which operand,
# and the overload that takes the number.
_TAKES_NUMBER: dict[Any, dict[int, Any]] = {
    aten.add.Tensor: {0: None, 1: aten.add.Tensor},
    aten.mul.Tensor: {0: None, 1: aten.mul.Tensor},
    aten.sub.Tensor: {1: aten.sub.Tensor},
    aten.div.Tensor: {1: aten.div.Tensor},
    aten.pow.Tensor_Tensor: {1: aten.pow.Tensor_Scalar},
    aten.where.self: {1: aten.where.ScalarSelf, 2: aten.where.ScalarOther},
    aten.masked_fill.Tensor: {2: aten.masked_fill.Scalar},
}


@dataclass(frozen=True)
class FoldConstants(Pass):
    """f(weights, constants) → a weight; a constant scalar operand → a number;
    where(all true, a, b) → a; where(all false, a, b) → b; rows taken or put by such conditions.

    A large result stays a lazy expression, and nothing of a checkpoint is ever read. Leaves: what
    depends on the number of tokens, random ops, results much larger than what they come from.
    """

    stage: ClassVar = Stage.NORMALIZE
    exactness: ClassVar = Exactness.EXACT
    after: ClassVar = (CanonicalizeOps,)

    def run(self, program: Program) -> int:
        """Counts nodes that became weights or what they always choose, and operands that became
        numbers."""
        values = self._constant_nodes(program)
        count = 0
        for node, weight in values.items():
            needed = any(user not in values for user in node.users)
            if node.op == "call_function" and needed and self.allowed():
                program.replace(node, program.add_weight(_name(program, node), weight))
                count += 1
        program.drop_dead()
        count += settle_conditions(program)
        for node in list(program.graph.nodes):
            chosen = _chosen(program, node)
            if chosen is not None and self.allowed():
                program.replace(node, chosen)
                count += 1
        program.drop_dead()
        for node in list(program.graph.nodes):
            if node.target in _TAKES_NUMBER and _number_operand(program, node, self):
                count += 1
        return count

    def _constant_nodes(self, program: Program) -> dict[fx.Node, Weight]:
        """The weight that each constant node stands for, in graph order."""
        values: dict[fx.Node, Weight] = {}
        for node in program.graph.nodes:
            weight = program.weight_of(node)
            if weight is not None:
                values[node] = weight
            elif _is_foldable(node) and all(source in values for source in node.all_input_nodes):
                folded = _fold(node, values)
                if _too_large(folded, [values[source] for source in node.all_input_nodes]):
                    self.miss(f"'{node.name}' would make a constant of {folded.nbytes} bytes.")
                else:
                    values[node] = folded
        return values


def _is_foldable(node: fx.Node) -> bool:
    value = node.meta.get("val")
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    if target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return isinstance(value, torch.Tensor) and all(isinstance(s, int) for s in value.shape)


def _fold(node: fx.Node, values: dict[fx.Node, Weight]) -> Weight:
    args, kwargs = pytree.tree_map_only(fx.Node, values.__getitem__, (node.args, node.kwargs))
    value: Any = node.meta["val"]
    shape = tuple(int(size) for size in value.shape)
    assert callable(node.target)
    weight = Expression(shape, value.dtype, node.target, tuple(args), dict(kwargs))
    sources = [values[source] for source in node.all_input_nodes]
    if weight.nbytes < _EVALUATED_BYTES and all(isinstance(s, ConstantTensor) for s in sources):
        with torch.no_grad():
            return ConstantTensor.of(weight.load().contiguous().clone(), weight.describe())
    return weight


def _too_large(weight: Weight, sources: list[Weight]) -> bool:
    limit = max(_EVALUATED_BYTES, _GROWTH * sum(source.nbytes for source in sources))
    return weight.nbytes > limit


def _name(program: Program, node: fx.Node) -> str:
    """Named after the weight it is made of, when that is one only."""
    leaves: set[str] = set()
    stack = [node]
    while stack:
        here = stack.pop()
        if here.op == "get_attr":
            leaves.add(str(here.target))
        stack.extend(here.all_input_nodes)
    return _common(sorted(leaves)) or "constant"


def _common(names: list[str]) -> str:
    """The words that all names start and end with: those of several experts' like weights."""
    words = [name.split("_") for name in names]
    shortest = min((len(parts) for parts in words), default=0)
    start = sum(1 for _ in itertools.takewhile(_is_same, zip(*words, strict=False)))
    ends = zip(*(parts[::-1] for parts in words), strict=False)
    end = min(sum(1 for _ in itertools.takewhile(_is_same, ends)), shortest - start)
    return "_".join(words[0][:start] + words[0][len(words[0]) - end :]) if words else ""


def _is_same(words: tuple[str, ...]) -> bool:
    return len(set(words)) == 1


def _number_operand(program: Program, node: fx.Node, step: FoldConstants) -> bool:
    """Puts the constant's number in place of it; False when no operand is such a constant."""
    for place, target in _TAKES_NUMBER[node.target].items():
        number = _number(program, node.args[place])
        if number is None or node.kwargs.get("alpha", 1) != 1:
            continue
        args = list(node.args)
        args[place] = number
        if target is None:  # a sum or a product: the number goes to the right
            target, args = node.target, [args[1], args[0]]
        if not isinstance(args[0], fx.Node) or not step.allowed():
            continue
        new = program.call(node, target, *args)
        same = new.meta["val"].dtype == node.meta["val"].dtype
        if not same or new.meta["val"].dim() != node.meta["val"].dim():
            program.graph.erase_node(new)
            continue
        new.meta.update(node.meta)
        program.replace(node, new)
        return True
    return False


def _chosen(program: Program, node: fx.Node) -> fx.Node | None:
    """What a choice by a constant always takes."""
    if node.target is not aten.where.self:
        return None
    condition = program.weight_of(node.args[0])
    if not isinstance(condition, ConstantTensor) or condition.dtype is not torch.bool:
        return None
    every, some = bool(condition.tensor.all()), bool(condition.tensor.any())
    taken: Any = node.args[1] if every else node.args[2]
    if (some and not every) or not same_kind(taken.meta["val"], node.meta["val"]):
        return None
    return taken  # type: ignore[no-any-return]


def _number(program: Program, operand: Any) -> float | int | bool | None:
    weight = program.weight_of(operand)
    if not isinstance(weight, ConstantTensor) or math.prod(weight.shape) != 1 or weight.shape:
        return None
    value: float | int | bool = weight.tensor.item()
    return value
