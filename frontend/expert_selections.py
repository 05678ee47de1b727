"""What a loop over experts does with masks and places: which slots it selects, reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from graphwright.frontend.expert_marks import (
    CannotRouteError,
    Choice,
    Hit,
    Hits,
    Matrix,
    Place,
    Rows,
    Stack,
)
from graphwright.frontend.expert_orders import read_ordered, write_ordered
from graphwright.frontend.expert_slots import ExpertSlots

__all__ = ["SELECTIONS", "Handler"]

Tensor = torch.Tensor
Handler = Callable[[ExpertSlots, Any, Any, Any], Any]
"""(slots, function, arguments, keywords) → its result, or NotImplemented: it is called as it is."""


def _where(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    choice = slots.tag(args[0])
    if len(args) > 1 and isinstance(args[1], Tensor):
        return NotImplemented
    if isinstance(choice, Choice) and choice.expert is not None:
        places = slots.places(choice)
        as_tuple = func in _WHERES or kwargs.get("as_tuple", False)
        return places if as_tuple else torch.stack(places, -1)
    if args[0].dim() == 1 and slots.settle(args[0].shape[0]):
        hits = Hits(Hit(expert) for expert in range(slots.count))
        return (hits,) if func in _WHERES or kwargs.get("as_tuple", False) else hits
    return NotImplemented


def _one_hot(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    ids = args[0]
    result = func(*args, **kwargs)
    slots.settle(result.shape[-1])
    return slots.mark(result, Choice(ids, (*range(ids.dim()), "e")))


def _equal(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    ids, expert = args[:2]
    if not isinstance(ids, Tensor) or not isinstance(expert, int) or isinstance(expert, bool):
        return NotImplemented
    if ids.dtype not in (torch.int64, torch.int32) or not 0 <= expert < max(slots.counts):
        return NotImplemented
    return slots.mark(func(ids, int(expert)), Choice(ids, tuple(range(ids.dim())), int(expert)))


def _moved(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    tag = slots.tag(args[0])
    if not isinstance(tag, (Choice, Matrix)) or kwargs:
        return NotImplemented
    result = func(*args)
    rank = result.dim()
    order = list(range(rank))
    if func in _PERMUTES:
        given = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
        order = [int(dim) % rank for dim in given]
    elif rank > 1:
        first, second = (int(dim) % rank for dim in (args[1:3] or (0, 1)))
        order[first], order[second] = second, first
    if isinstance(tag, Choice):
        return slots.mark(result, replace(tag, axes=tuple(tag.axes[dim] for dim in order)))
    turned = tag.turned if order == list(range(rank)) else not tag.turned
    return slots.mark(result, replace(tag, turned=turned))


def _viewed(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    """A weight [experts · rows, K] as [experts, rows, K]; a choice in its own shape."""
    result = func(*args, **kwargs)
    tag = slots.tag(args[0])
    if isinstance(tag, Choice) and result.shape == args[0].shape:
        return slots.mark(result, tag)
    if not slots.is_weight(args[0]) or args[0].dim() != 2 or result.dim() != 3:
        return result
    whole = result.shape[0] in slots.counts and result.shape[2] == args[0].shape[1]
    return slots.mark(result, Stack()) if whole else result


def _converted(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    tag = slots.tag(args[0])
    if not isinstance(tag, (Choice, Matrix)):
        return NotImplemented
    return slots.mark(func(*args, **kwargs), tag)


def _is_any(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    """A mask selects something: where it does not, its turn does nothing."""
    tag = slots.tag(args[0])
    plain = len(args) == 1 and not kwargs
    return True if isinstance(tag, Choice) and tag.expert is not None and plain else NotImplemented


def _get(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    x, key = args
    keys = key if isinstance(key, tuple) else (key,)
    tag = slots.tag(x)
    if slots.is_stack(x) and isinstance(keys[0], int) and len(keys) == 1:
        return slots.mark(func(x, int(keys[0])), Matrix(lambda: x))
    if len(keys) == 1 and (ordered := read_ordered(slots, x, keys[0])) is not NotImplemented:
        return ordered
    if isinstance(tag, Choice) and tag.expert is None:
        return _mask_of(slots, func, x, keys, tag)
    first = next((slots.tag(k) for k in keys if slots.tag(k) is not None), None)
    if isinstance(first, Choice) and first.expert is not None:
        if len(keys) > 1 or not slots.select(first):
            return x[:0] if len(keys) == 1 and len(first.axes) == 1 else NotImplemented
        return x.flatten(0, len(first.axes) - 1) if len(first.axes) > 1 else x
    if isinstance(first, Place) and not first.empty:
        return _get_places(slots, x, keys)
    return NotImplemented


def _mask_of(slots: ExpertSlots, func: Any, x: Tensor, keys: Any, tag: Choice) -> Any:
    """One expert's part of a one-hot encoding is its mask."""
    at = tag.axes.index("e")
    if keys[0] is Ellipsis:
        keys = (*[slice(None)] * (x.dim() - len(keys) + 1), *keys[1:])
    whole = all(k == slice(None) for i, k in enumerate(keys) if i != at)
    if len(keys) <= at or not isinstance(keys[at], int) or not whole:
        return NotImplemented
    expert = int(keys[at])
    plain = (*keys[:at], expert, *keys[at + 1 :])
    rest = tuple(axis for axis in tag.axes if axis != "e")
    return slots.mark(func(x, plain), Choice(tag.ids, rest, expert % x.shape[at]))


def _get_places(slots: ExpertSlots, x: Tensor, keys: tuple[Any, ...]) -> Any:
    """x[token], x[token, slot] and the like for all slots, in the order of ids."""
    leading = 1 if keys[0] is None else 0
    tags = [slots.tag(k) for k in keys[leading:]]
    count = next((i for i, t in enumerate(tags) if not isinstance(t, Place)), len(tags))
    axes = [t.axis for t in tags[:count]]
    rest = (*[None] * leading, slice(None), *keys[leading + count :])
    assert slots.ids is not None
    rank = slots.ids.dim()
    tokens = list(range(max(rank - 1, 1)))
    if axes == tokens and rank > 1:
        rows = slots.spread(x, len(tokens))
        return rows if rest == (slice(None),) else rows[rest]
    if sorted(axes) != list(range(rank)):
        raise CannotRouteError("it reads something by the places of an expert's slots")
    order = [axes.index(axis) for axis in range(rank)]
    if order != list(range(rank)):
        x = x.permute(*order, *range(rank, x.dim()))
    flat = x.reshape(-1, *x.shape[rank:])
    return slots.mark(flat, Rows(x)) if rest == (slice(None),) else flat[rest]


def _set(slots: ExpertSlots, func: Any, args: Any, kwargs: Any) -> Any:
    x, key, value = args
    keys = key if isinstance(key, tuple) else (key,)
    if len(keys) == 1 and write_ordered(slots, x, keys[0], value) is not NotImplemented:
        return None
    tags = [slots.tag(k) for k in keys]
    first = next((t for t in tags if t is not None), None)
    if isinstance(first, (Place, Choice)) and not slots.is_one_group:
        raise CannotRouteError("experts of several kinds write their results in place")
    if isinstance(first, Place):
        if first.empty:
            return None
        rows = slots.tag(value)
        if slots.ids is not None and slots.ids.dim() == 1 and len(keys) == 1:
            x.copy_(value)  # a token has one expert
            return None
        if not isinstance(rows, Rows) or rows.added is None or rows.source is not x:
            raise CannotRouteError("it overwrites what another expert gave the same token")
        x.add_(slots.add_up(rows.added, x))
        return None
    if isinstance(first, Choice) and first.expert is not None and len(keys) == 1:
        if slots.select(first):
            x.copy_(value.reshape(x.shape))
        return None
    return NotImplemented


_WHERES = frozenset({torch.where, Tensor.where})
_PERMUTES = frozenset({torch.permute, Tensor.permute})
SELECTIONS: dict[Any, Handler] = {
    **dict.fromkeys((*_WHERES, torch.nonzero, Tensor.nonzero, torch.argwhere), _where),
    torch.nn.functional.one_hot: _one_hot,
    **dict.fromkeys((torch.eq, Tensor.eq, Tensor.__eq__), _equal),
    **dict.fromkeys((*_PERMUTES, torch.transpose, Tensor.transpose, torch.t, Tensor.t), _moved),
    Tensor.T.__get__: _moved,  # type: ignore[attr-defined]
    **dict.fromkeys((Tensor.to, Tensor.bool, Tensor.int, Tensor.long, Tensor.float), _converted),
    **dict.fromkeys(
        (
            Tensor.view,
            Tensor.reshape,
            torch.reshape,
            Tensor.unflatten,
            torch.unflatten,
            Tensor.squeeze,
            torch.squeeze,
        ),
        _viewed,
    ),
    **dict.fromkeys((torch.any, Tensor.any), _is_any),
    Tensor.__getitem__: _get,
    Tensor.__setitem__: _set,
}
