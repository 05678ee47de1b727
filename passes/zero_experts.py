"""What a value is for the experts that a token did not choose, where that is one number."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.ir.levels import POINTWISE
from graphwright.ir.program import Program

__all__ = ["Unchosen"]

aten = torch.ops.aten
_WHERE = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
_MOVES = (aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor)
Number = float | bool | int


class Unchosen:
    """Values laid out by experts, at the experts that are not in `experts` [T, S].

    Zero times anything is taken to be zero: values that are not finite are not looked at.
    """

    def __init__(self, program: Program, experts: fx.Node) -> None:
        self.program = program
        self.experts = experts
        choice: Any = experts.args[0]
        self.count = int(choice.args[0].meta["val"].shape[-1])
        self.known: dict[fx.Node, Number | None] = {}

    def value(self, node: Any) -> Number | None:
        """The number that `node` is for every expert a token did not choose; None if unknown."""
        if not isinstance(node, fx.Node):
            return node if isinstance(node, (bool, int, float)) else None
        if node not in self.known:
            self.known[node] = self._value(node)
        return self.known[node]

    def _value(self, node: fx.Node) -> Number | None:
        if node.target is aten.permute.default:
            return self._score(node.args[0]) if list(node.args[1]) == [1, 0] else None  # type: ignore[arg-type]
        if node.target in _MOVES:
            return self.value(node.args[0])
        if node.target in (aten.bmm.default, aten.matmul.default):
            return 0.0 if self.value(node.args[0]) == 0 else None
        return self._pointwise(node, self.value)

    def _score(self, node: Any) -> Number | None:
        """The same for `node` [T, E], which compares the experts with places."""
        if not isinstance(node, fx.Node):
            return node if isinstance(node, (bool, int, float)) else None
        if node.target is aten.eq.Tensor and self._is_chosen(node.args[0]):
            return False if self._is_places(node.args[1]) else None
        return self._pointwise(node, self._score)

    def _is_chosen(self, node: Any) -> bool:
        """One chosen expert of each token, [T, 1]."""
        if node.target is aten.slice.Tensor and node.args[1] == 1:
            node = node.args[0] if node.meta["val"].shape[1] == 1 else None
            return node is self.experts
        return node is self.experts and node.meta["val"].shape[1] == 1

    def _is_places(self, node: Any) -> bool:
        """The weight 0, 1, … E - 1."""
        weight = self.program.weight_of(node)
        if weight is None or weight.shape != (self.count,):
            return False
        return torch.equal(weight.load(), torch.arange(self.count))

    def _pointwise(self, node: fx.Node, value_of: Any) -> Number | None:
        name = str(node.target).removeprefix("aten.")
        if node.op != "call_function" or name not in POINTWISE:
            return None
        if node.target in _WHERE:
            condition = value_of(node.args[0])
            if condition is not None:
                return self._cast(value_of(node.args[1 if condition else 2]), node)
        numbers = [value_of(item) for item in node.args]
        if node.target is aten.mul.Tensor and 0 in [n for n in numbers if n is not None]:
            return 0.0
        if any(number is None for number in numbers):
            return None
        operands = [
            torch.tensor(number, dtype=item.meta["val"].dtype)
            if isinstance(item, fx.Node)
            else item
            for number, item in zip(numbers, node.args, strict=True)
        ]
        assert callable(node.target)
        result: Number = node.target(*operands, **node.kwargs).item()
        return result

    def _cast(self, number: Number | None, node: fx.Node) -> Number | None:
        if number is None:
            return None
        result: Number = torch.tensor(number).to(node.meta["val"].dtype).item()
        return result
