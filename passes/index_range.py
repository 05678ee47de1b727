"""Between which bounds the values of an integer node lie, whatever the tokens are."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.ir.program import Program

__all__ = ["index_range"]

aten, gw = torch.ops.aten, torch.ops.gw
Range = tuple[int, int]
_READ_BYTES = 1 << 24  # of a table of indices whose values are looked at
_MOVES = frozenset(
    {
        aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim,
        aten.squeeze.dims, aten.slice.Tensor, aten.select.int, aten.expand.default,
        aten.clone.default, aten.flip.default, aten.repeat.default, aten.gather.default,
        aten.index.Tensor, aten.index_select.default, aten.embedding.default,
    }
)  # fmt: skip


def index_range(program: Program, node: Any) -> Range | None:
    """(least, most) that the values of `node` can be; None when that is not known.

    The least and the most need not occur. Places chosen by gw.top_k lie on the axis it chose from.
    """
    if isinstance(node, int):
        return node, node
    if not isinstance(node, fx.Node):
        return None
    weight = program.weight_of(node)
    if weight is not None:
        return _of_values(weight.load()) if weight.nbytes <= _READ_BYTES else None
    if node.target is operator.getitem:
        return _of_choice(*node.args)
    if node.target in _MOVES:
        return index_range(program, node.args[0])
    if node.target is aten._to_copy.default:
        source: Any = node.args[0]
        whole = source.meta["val"].dtype in (torch.int32, torch.int64)
        return index_range(program, source) if whole and _is_whole(node) else None
    rule = _RULES.get(node.target)
    return rule(program, node) if rule is not None else None


def _is_whole(node: fx.Node) -> bool:
    return node.meta["val"].dtype in (torch.int32, torch.int64)


def _of_values(values: torch.Tensor) -> Range | None:
    if values.is_floating_point() or not values.numel():
        return None
    return int(values.min()), int(values.max())


def _of_choice(choice: Any, number: Any) -> Range | None:
    if choice.target is not gw.top_k.default or number != 1:
        return None
    return 0, int(choice.args[0].meta["val"].shape[-1]) - 1


def _union(program: Program, *nodes: Any) -> Range | None:
    ranges = [index_range(program, node) for node in nodes]
    known = [found for found in ranges if found is not None]
    if len(known) < len(ranges):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _clamped(program: Program, node: fx.Node) -> Range | None:
    given: Any = [*node.args[1:3], None, None]
    low, high = (node.kwargs.get(name, given[i]) for i, name in enumerate(("min", "max")))
    if any(isinstance(limit, (fx.Node, float)) for limit in (low, high)):
        return None
    if low is not None and high is not None:
        return min(low, high), high
    inner = index_range(program, node.args[0])
    if inner is None:
        return None
    least, most = inner
    if low is not None:
        return max(least, low), max(most, low)
    return min(least, high), min(most, high)


def _shifted(program: Program, node: fx.Node) -> Range | None:
    inner, shift = index_range(program, node.args[0]), node.args[1]
    if inner is None or not isinstance(shift, int) or node.kwargs:
        return None
    sign = -1 if node.target is aten.sub.Tensor else 1
    return inner[0] + sign * shift, inner[1] + sign * shift


def _remainder(program: Program, node: fx.Node) -> Range | None:
    divisor = node.args[1]
    return (0, divisor - 1) if isinstance(divisor, int) and divisor > 0 else None


_RULES: dict[Any, Callable[[Program, fx.Node], Range | None]] = {
    aten.cat.default: lambda program, node: _union(program, *node.args[0]),  # type: ignore[misc]
    aten.stack.default: lambda program, node: _union(program, *node.args[0]),  # type: ignore[misc]
    aten.where.self: lambda program, node: _union(program, *node.args[1:3]),
    aten.where.ScalarOther: lambda program, node: _union(program, *node.args[1:3]),
    aten.where.ScalarSelf: lambda program, node: _union(program, *node.args[1:3]),
    aten.masked_fill.Scalar: lambda program, node: _union(program, node.args[0], node.args[2]),
    aten.clamp.default: _clamped,
    aten.add.Tensor: _shifted,
    aten.sub.Tensor: _shifted,
    aten.remainder.Scalar: _remainder,
}
