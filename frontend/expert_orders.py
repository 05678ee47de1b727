"""Experts whose slots are sorted by expert and cut by counts, without a loop that selects them.

    order = chosen.flatten().argsort()
    rows = x[order // slots].split(counts.tolist())
    y = torch.cat([expert(part) for expert, part in zip(experts, rows)])
    out[order] = y

The slots need not be sorted: each belongs to one expert, and what the experts do is the same but
for their weights. So slots keep their order, and the first expert's part is all of them, the other
ones' parts are empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from graphwright.frontend.expert_marks import CannotRouteError, Order, Owner, name_of
from graphwright.frontend.expert_slots import ExpertSlots

__all__ = ["ORDERS", "add_ordered", "read_ordered", "write_ordered"]

Tensor = torch.Tensor
_INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True)
class _Size:
    """A number where a tensor with one element was expected. Tensors without values make their list
    of such elements."""

    size: Any

    def item(self) -> Any:
        return self.size


def _topk(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    """Remembers the last choice among experts: how many slots there are."""
    result = func(*args, **kwargs)
    if args[0].dim() == 2 and args[0].shape[1] in slots.counts:
        slots.chosen = result[1]
    return result


def _sizes(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    """How many slots each expert has, as numbers: the first one all, the others none."""
    x = args[0]
    if x.dim() != 1 or x.dtype not in _INTEGERS or slots.chosen is None:
        return NotImplemented
    if x.shape[0] not in slots.counts:
        return NotImplemented
    slots.settle(x.shape[0])
    sizes = [slots.chosen.numel(), *[0] * (slots.count - 1)]
    if func is Tensor.numpy:
        return np.array(sizes, dtype=object)
    return sizes if func is Tensor.tolist else [_Size(size) for size in sizes]


def _split(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    """All rows for the first expert, none for the others, by such sizes."""
    given = {**dict(zip(("self", "sizes", "dim"), args, strict=False)), **kwargs}
    x, sizes = given["self"], given.get("sizes", kwargs.get("split_size_or_sections"))
    if slots.chosen is None or given.get("dim", 0) != 0 or not isinstance(sizes, (list, tuple)):
        return NotImplemented
    if len(sizes) not in slots.counts or any(sizes[1:]) or x.shape[0] != slots.chosen.numel():
        return NotImplemented
    return [x, *(x[:0] for _ in sizes[1:])]


def _sort(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    ids = args[0]
    if ids.dim() != 1 or ids.dtype not in _INTEGERS or slots.chosen is None:
        return NotImplemented
    if ids.shape[0] != slots.chosen.numel() or kwargs.get("descending", False):
        return NotImplemented
    slots.order(ids)
    order = slots.mark(torch.arange(ids.shape[0], device=ids.device), Order())
    if name_of(func) == "argsort":
        return order
    return torch.return_types.sort((ids, order))


def _divide(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    """The token of each slot, from its place."""
    if not isinstance(slots.tag(args[0]), Order) or not isinstance(args[1], int):
        return NotImplemented
    if name_of(func) == "div" and kwargs.get("rounding_mode") is None:
        return NotImplemented
    return slots.mark(func(*args, **kwargs), Owner(args[1]))


def read_ordered(slots: ExpertSlots, x: Tensor, key: Any) -> Any:
    """x[key] by places in the order of experts, or by the tokens there."""
    tag = slots.tag(key)
    if isinstance(tag, Order):
        _check_rows(slots, x)
        return x
    if isinstance(tag, Owner):
        wide = x.unsqueeze(1).expand(x.shape[0], tag.slots, *x.shape[1:])
        return wide.reshape(-1, *x.shape[1:])
    return NotImplemented


def write_ordered(slots: ExpertSlots, x: Tensor, key: Any, value: Any) -> Any:
    """x[key] = value by places in the order of experts."""
    if not isinstance(slots.tag(key), Order):
        return NotImplemented
    _check_rows(slots, x)
    return x.copy_(value)


def add_ordered(slots: ExpertSlots, x: Tensor, key: Any, rows: Tensor) -> Any:
    """What is added to x by places in the order of experts, or by the tokens there."""
    tag = slots.tag(key)
    if isinstance(tag, Order):
        _check_rows(slots, x)
        return rows
    if isinstance(tag, Owner):
        return rows.reshape(-1, tag.slots, *rows.shape[1:]).sum(1).to(x.dtype)
    return NotImplemented


def _check_rows(slots: ExpertSlots, x: Tensor) -> None:
    assert slots.ids is not None
    if x.shape[0] != slots.ids.numel():
        raise CannotRouteError("the order of its slots by expert is used for something else")


ORDERS: dict[Any, Callable[[ExpertSlots, Any, Any, Any], Any]] = {
    **dict.fromkeys((torch.topk, Tensor.topk), _topk),
    **dict.fromkeys((Tensor.tolist, Tensor.numpy, Tensor.unbind, torch.unbind), _sizes),
    **dict.fromkeys((torch.split, Tensor.split), _split),
    **dict.fromkeys((torch.sort, Tensor.sort, torch.argsort, Tensor.argsort), _sort),
    **dict.fromkeys(
        (torch.div, Tensor.div, torch.floor_divide, Tensor.floor_divide, Tensor.__floordiv__),
        _divide,
    ),
}
