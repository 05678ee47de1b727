"""What a loop over experts does with rows: products with each slot's own matrix, sums by token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import graphwright.ir.ops  # noqa: F401  (declares gw.routed_linear)
from graphwright.frontend.expert_marks import CannotRouteError, Matrix, Place, Rows, name_of
from graphwright.frontend.expert_orders import add_ordered
from graphwright.frontend.expert_selections import Handler
from graphwright.frontend.expert_slots import ExpertSlots

__all__ = ["PRODUCTS"]

Tensor = torch.Tensor


def _add(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    if kwargs or len(args) != 2:
        return NotImplemented
    for one, other in (args, args[::-1]):
        tag = slots.tag(one)
        if isinstance(tag, Rows) and tag.added is None and isinstance(other, Tensor):
            return slots.mark(torch.add(one, other), replace(tag, added=other))
    return NotImplemented


def _index_add(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    names = ("self", "dim", "index", "source")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, index, rows = given["self"], given["index"], given["source"]
    added = add_ordered(slots, x, index, rows) if given["dim"] == 0 else NotImplemented
    if added is not NotImplemented:
        return _plus(func, x, added * given.get("alpha", 1))
    place = slots.tag(index)
    if not isinstance(place, Place):
        return NotImplemented
    if place.empty:
        return x
    assert slots.ids is not None
    if given["dim"] != 0 or place.axis != 0 or slots.ids.dim() > 2:
        raise CannotRouteError("it adds up along something else than tokens")
    return _plus(func, x, slots.add_up(rows, x) * given.get("alpha", 1))


def _plus(func: Any, x: Tensor, total: Tensor) -> Tensor:
    return x.add_(total) if name_of(func).endswith("_") else x + total


def _linear(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
    bias = given.get("bias")
    return _product(slots, given["input"], given["weight"], bias, transposed=False)


def _matmul(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    return NotImplemented if kwargs else _product(slots, args[0], args[1], None, transposed=True)


def _product(slots: ExpertSlots, x: Any, weight: Any, bias: Any, *, transposed: bool) -> Any:
    """x [P, K] · the weight of each slot's own expert."""
    matrix = slots.tag(weight)
    if not isinstance(matrix, Matrix) or slots.ids is None or x.shape[0] == 0:
        return NotImplemented
    if x.dim() != 2 or weight.dim() != 2:
        raise CannotRouteError(f"an expert takes rows of {x.dim()} axes")
    if x.shape[0] != slots.ids.numel():
        raise CannotRouteError("an expert takes other rows than those of its slots")
    stacked = matrix.stacked()
    if matrix.turned != transposed:
        stacked = stacked.transpose(1, 2)
    offset = slots.tag(bias)
    if bias is not None and not isinstance(offset, Matrix):
        raise CannotRouteError("an expert's product has a bias that is not its own")
    y = torch.ops.gw.routed_linear(
        x.reshape(-1, slots.of_each_token, x.shape[1]),
        slots.own.reshape(-1, slots.of_each_token),
        stacked,
        None if offset is None else offset.stacked(),
    )
    return y.reshape(-1, y.shape[2])


PRODUCTS: dict[Any, Handler] = {
    **dict.fromkeys(
        (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_), _add
    ),
    **dict.fromkeys((torch.index_add, Tensor.index_add, Tensor.index_add_), _index_add),
    torch.nn.functional.linear: _linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), _matmul),
}
