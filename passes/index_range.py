"""Between which bounds the values of an integer node lie, whatever the tokens are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.ir.program import Program

__all__ = ["index_range"]

aten, gw = torch.ops.aten, torch.ops.gw
Range = tuple[int, int]
_READ_BYTES = 1 << 24  # of a table of indices whose values are looked at
_LIMIT = 1 << 31  # past which int32 numbers wrap around
_WHOLE = (torch.int32, torch.int64, torch.bool)
_WHERES = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
_MOVES = frozenset(
    {
        aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim,
        aten.squeeze.dims, aten.slice.Tensor, aten.select.int, aten.expand.default,
        aten.clone.default, aten.flip.default, aten.repeat.default, aten.gather.default,
        aten.index.Tensor, aten.index_select.default, aten.embedding.default,
    }
)  # fmt: skip


def index_range(
    program: Program, node: Any, known: Mapping[fx.Node, Range] | None = None
) -> Range | None:
    """(least, most) that the values of `node` can be; None when that is not known.

    The least and the most need not occur. Places chosen by gw.top_k lie on the axis it chose from.
    known: ranges of nodes, floating-point ones of whole numbers too, that are taken as given.
    """
    return _Ranges(program, known or {}).of(node)


@dataclass(frozen=True)
class _Ranges:
    program: Program
    known: Mapping[fx.Node, Range]

    def of(self, node: Any) -> Range | None:
        if isinstance(node, int):
            return int(node), int(node)
        if not isinstance(node, fx.Node) or node in self.known:
            return self.known.get(node)
        weight = self.program.weight_of(node)
        if weight is not None:
            return _of_values(weight.load()) if weight.nbytes <= _READ_BYTES else None
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype is torch.bool:
            return 0, 1
        if node.target is operator.getitem:
            return _of_choice(*node.args)
        if node.target in _MOVES:
            return self.of(node.args[0])
        if node.target is aten._to_copy.default:
            source: Any = node.args[0]
            whole = source in self.known or source.meta["val"].dtype in _WHOLE
            return self.of(source) if whole and node.meta["val"].dtype in _WHOLE[:2] else None
        rule = _RULES.get(node.target)
        found = rule(self, node) if rule is not None else None
        return found if found and max(map(abs, found)) < _LIMIT else None


def _of_values(values: torch.Tensor) -> Range | None:
    if values.is_floating_point() or not values.numel():
        return None
    return int(values.min()), int(values.max())


def _of_choice(choice: Any, number: Any) -> Range | None:
    if choice.target is not gw.top_k.default or number != 1:
        return None
    return 0, int(choice.args[0].meta["val"].shape[-1]) - 1


def _union(ranges: _Ranges, *nodes: Any) -> Range | None:
    found = [ranges.of(node) for node in nodes]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _chosen(ranges: _Ranges, condition: Any, one: Any, other: Any) -> Range | None:
    """where(condition, one, other). What the condition compares with a number is taken only where
    it is on the one side of it."""
    parts = []
    for value, op in ((one, condition.target), (other, _OPPOSITE.get(condition.target))):
        bounds = ranges.of(value)
        if bounds is None:
            return None
        number = condition.args[1] if op in _KEPT else None
        if isinstance(number, int) and condition.args[0] is value:
            bounds = _KEPT[op](*bounds, number)
        if bounds[0] <= bounds[1]:  # else it is never taken
            parts.append(bounds)
    return (min(low for low, _ in parts), max(high for _, high in parts)) if parts else None


_OPPOSITE: dict[Any, Any] = {
    aten.eq.Scalar: aten.ne.Scalar, aten.ne.Scalar: aten.eq.Scalar,
    aten.lt.Scalar: aten.ge.Scalar, aten.ge.Scalar: aten.lt.Scalar,
    aten.gt.Scalar: aten.le.Scalar, aten.le.Scalar: aten.gt.Scalar,
}  # fmt: skip
_KEPT: dict[Any, Callable[[int, int, int], Range]] = {  # of low to high, what is <op> a number
    aten.eq.Scalar: lambda low, high, n: (max(low, n), min(high, n)),
    aten.ne.Scalar: lambda low, high, n: (low + (low == n), high - (high == n)),
    aten.lt.Scalar: lambda low, high, n: (low, min(high, n - 1)),
    aten.le.Scalar: lambda low, high, n: (low, min(high, n)),
    aten.gt.Scalar: lambda low, high, n: (max(low, n + 1), high),
    aten.ge.Scalar: lambda low, high, n: (max(low, n), high),
}


def _clamped(ranges: _Ranges, node: fx.Node) -> Range | None:
    given: Any = [*node.args[1:3], None, None]
    low, high = (node.kwargs.get(name, given[i]) for i, name in enumerate(("min", "max")))
    if any(isinstance(limit, (fx.Node, float)) for limit in (low, high)):
        return None
    if low is not None and high is not None:
        return min(low, high), high
    inner = ranges.of(node.args[0])
    if inner is None:
        return None
    least, most = inner
    if low is not None:
        return max(least, low), max(most, low)
    return min(least, high), min(most, high)


def _sum(ranges: _Ranges, node: fx.Node) -> Range | None:
    one, two = ranges.of(node.args[0]), ranges.of(node.args[1])
    if one is None or two is None or node.kwargs:
        return None
    if node.target is aten.sub.Tensor:
        two = -two[1], -two[0]
    return one[0] + two[0], one[1] + two[1]


def _product(ranges: _Ranges, node: fx.Node) -> Range | None:
    one, two = ranges.of(node.args[0]), ranges.of(node.args[1])
    if one is None or two is None:
        return None
    corners = [a * b for a in one for b in two]
    return min(corners), max(corners)


def _remainder(ranges: _Ranges, node: fx.Node) -> Range | None:
    divisor = node.args[1]
    return (0, divisor - 1) if isinstance(divisor, int) and divisor > 0 else None


_RULES: dict[Any, Callable[[_Ranges, fx.Node], Range | None]] = {
    aten.cat.default: lambda ranges, node: _union(ranges, *node.args[0]),  # type: ignore[misc]
    aten.stack.default: lambda ranges, node: _union(ranges, *node.args[0]),  # type: ignore[misc]
    **dict.fromkeys(_WHERES, lambda ranges, node: _chosen(ranges, *node.args[:3])),
    aten.masked_fill.Scalar: lambda ranges, node: _chosen(
        ranges, *(node.args[place] for place in (1, 2, 0))
    ),
    aten.clamp.default: _clamped,
    aten.add.Tensor: _sum,
    aten.sub.Tensor: _sum,
    aten.mul.Tensor: _product,
    aten.remainder.Scalar: _remainder,
}
