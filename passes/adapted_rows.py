"""What passes have made of weights with low-rank changes: where the rows of each one are now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from graphwright.ir.adapters import AdaptedWeight, adapted_leaves
from graphwright.ir.errors import PassError
from graphwright.ir.weights import ConstantTensor, Expression, Weight

__all__ = ["AdaptedRows", "adapted_rows"]

aten = torch.ops.aten
_SAME = (aten._to_copy.default, aten.clone.default)
_MOVES = (
    aten.index_select.default, aten.slice.Tensor, aten.permute.default, aten.transpose.int,
    aten.t.default,
)  # fmt: skip


@dataclass(frozen=True)
class AdaptedRows:
    """One adapted weight inside another: `move` takes what stands in its place there, with other
    inputs, and does with its rows what was done with those of `leaf`; values came `factor` times.
    """

    leaf: AdaptedWeight
    move: Callable[[Weight], Weight]
    factor: float = 1.0

    def rows(self, b: Weight) -> Weight:
        """`b` [outputs of the leaf, r] as it lies in the whole, zeros elsewhere: [outputs, r]."""
        return self.move(Expression.of(aten.t.default, b) if self.leaf.turned else b)


def adapted_rows(weight: Weight) -> list[AdaptedRows]:
    """Each adapted weight that `weight` [outputs, inputs] is made of.

    Raises PassError where anything was done with them but putting rows in other places.
    """
    if isinstance(weight, AdaptedWeight):
        return [AdaptedRows(weight, lambda b: b)]
    if not isinstance(weight, Expression) or not adapted_leaves(weight):
        return []
    function, args = weight.function, weight.args
    if function is aten.cat.default:
        return _joined(args)
    inner = adapted_rows(args[0]) if isinstance(args[0], Weight) else []
    if not inner or any(isinstance(each, Weight) for each in args[1:]):
        raise _unknown(weight)
    if function in _SAME:
        return inner
    if function in (aten.mul.Tensor, aten.div.Tensor):
        number = float(args[1])
        by = number if function is aten.mul.Tensor else 1 / number
        return [AdaptedRows(each.leaf, each.move, each.factor * by) for each in inner]
    if function in _MOVES and len(args[0].shape) == 2:
        return [_moved(each, function, args[1:], weight.kwargs) for each in inner]
    raise _unknown(weight)


def _moved(inner: AdaptedRows, function: Any, args: Any, kwargs: Any) -> AdaptedRows:
    def move(b: Weight) -> Weight:
        return Expression.of(function, inner.move(b), *args, **kwargs)

    return AdaptedRows(inner.leaf, move, inner.factor)


def _joined(args: Any) -> list[AdaptedRows]:
    """Of a concatenation, with zeros for the weights beside."""
    found = []
    for place, part in enumerate(args[0]):
        for inner in adapted_rows(part):

            def move(b: Weight, place: int = place, inner: AdaptedRows = inner) -> Weight:
                moved = inner.move(b)
                width = moved.shape[1]
                parts = [
                    moved if number == place else _zeros(each.shape[0], width, b.dtype)
                    for number, each in enumerate(args[0])
                ]
                return Expression.of(aten.cat.default, parts, *args[1:])

            found.append(AdaptedRows(inner.leaf, move, inner.factor))
    return found


def _zeros(rows: int, width: int, dtype: torch.dtype) -> Weight:
    return ConstantTensor.of(torch.zeros(rows, width, dtype=dtype), "zeros")


def _unknown(weight: Expression) -> PassError:
    return PassError(
        f"'{weight.describe()}' is computed of a weight that an adapter changes, by more than "
        "putting its rows in other places: merge the adapter with --lora, into a file of its own."
    )
