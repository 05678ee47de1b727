"""Loops over experts, run once for all tokens: what each expert selects becomes every slot.

A loop such as

    for e, expert in enumerate(self.experts):
        slot, token = torch.where(mask[e])
        y.index_add_(0, token, expert(x[token]) * weights[token, slot, None])

cannot be traced: how many tokens an expert gets depends on values. But each slot of a token belongs
to one expert, and the body is the same for all. So the first expert's turn takes all slots, in
which every matrix of an expert is that of the slot's own expert; the other turns find nothing.
Whether a block really is such a loop is not decided here: see `experts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import graphwright.ir.ops  # noqa: F401  (declares gw.routed_linear)

__all__ = ["CannotRouteError", "ExpertLoop"]

Tensor = torch.Tensor
_functional = torch.nn.functional


class CannotRouteError(Exception):
    """Why a block is no loop over experts of the known kind: the end of a sentence."""


@dataclass(frozen=True)
class _Choice:
    """A tensor that says where `ids` is an expert: `axes` names its axes, ids' own by number and
    "e" for experts. Without that axis it is the mask of one `expert`."""

    ids: Tensor
    axes: tuple[int | str, ...]
    expert: int | None = None


@dataclass(frozen=True)
class _Place:
    """Places that a mask selects along one axis of ids; none if `empty`."""

    axis: int
    empty: bool


@dataclass(frozen=True)
class _Rows:
    """The rows of `source` for all slots, to which `added` was added."""

    source: Tensor
    added: Tensor | None = None


@dataclass(frozen=True)
class _Matrix:
    """A weight of one expert, standing for that of each slot's own; transposed if `turned`."""

    stacked: Callable[[], Tensor]
    turned: bool = False


class _Hit(int):
    """The number of an expert, also where a tensor with one element was expected."""

    def item(self) -> int:
        return int(self)

    def squeeze(self, *_: int) -> _Hit:
        return self

    def __getitem__(self, _: Any) -> _Hit:
        return self


class _Hits(list[_Hit]):
    """The numbers of all experts, also where a tensor of them was expected."""

    def tolist(self) -> list[int]:
        return [int(hit) for hit in self]

    def _same(self, *_: int) -> _Hits:
        return self

    flatten = squeeze = view = reshape = _same


class ExpertLoop(TorchFunctionMode):
    """While open, a loop over `count` experts selects all slots in its first turn.

    weights: the lists of tensors, one of each expert, that stand for each other; stacks: tensors
    [count, ...] that hold all experts' weights.
    """

    def __init__(self, count: int, weights: Iterable[list[Tensor]], stacks: Iterable[Tensor]):
        super().__init__()
        self.count = count
        self.ids: Tensor | None = None
        self.visited: set[int] = set()
        self._first: int | None = None
        self._stacks = {id(tensor) for tensor in stacks}
        self._tags: dict[int, tuple[Tensor, Any]] = {}
        for group in weights:
            matrix = _Matrix(lambda group=group: torch.stack(group))  # type: ignore[misc]
            for tensor in group:
                self._tag(tensor, matrix)

    def check_complete(self) -> None:
        """Raises CannotRouteError unless every expert had its turn."""
        missing = sorted(set(range(self.count)) - self.visited)
        if missing:
            raise CannotRouteError(f"expert {missing[0]} of {self.count} never has its turn")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        return func(*self._plain(func, args), **kwargs)

    # ---- what is known of tensors

    def _tag(self, tensor: Tensor, tag: Any) -> Tensor:
        self._tags[id(tensor)] = (tensor, tag)  # the tensor is kept: its id must stay its own
        return tensor

    def tag(self, value: Any) -> Any:
        """What is known of a tensor; None for anything else."""
        return self._tags.get(id(value), (None, None))[1] if isinstance(value, Tensor) else None

    def _plain(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, a vector of one expert replaced by that of each slot's own."""
        if self.ids is None or not any(isinstance(self.tag(arg), _Matrix) for arg in args):
            return args
        rows = [arg for arg in args if isinstance(arg, Tensor) and self.tag(arg) is None]
        if all(row.shape[0] == 0 for row in rows) or func not in _POINTWISE:
            if rows and rows[0].shape[0] != 0:
                raise CannotRouteError(f"an expert's weight goes into {_name(func)}")
            return args
        return tuple(self._vector(arg) for arg in args)

    def _vector(self, arg: Any) -> Any:
        matrix = self.tag(arg)
        if not isinstance(matrix, _Matrix):
            return arg
        if arg.dim() != 1 or self.ids is None:
            raise CannotRouteError("an expert's matrix is used element by element")
        return matrix.stacked()[self.ids.reshape(-1)]

    # ---- selections

    def select(self, mask: _Choice) -> bool:
        """Does this mask's turn take all slots (the first one does), or none?"""
        assert mask.expert is not None
        self.visited.add(mask.expert)
        if self._first is None:
            self._first, self.ids = mask.expert, mask.ids
        if mask.ids is not self.ids:
            raise CannotRouteError("its experts are selected by more than one routing")
        return mask.expert == self._first

    @property
    def slots(self) -> int:
        """How many experts each token has."""
        assert self.ids is not None
        return int(self.ids.shape[-1]) if self.ids.dim() > 1 else 1

    def places(self, mask: _Choice) -> tuple[Tensor, ...]:
        """What `torch.where(mask)` returns: an index along each axis of the mask."""
        full = self.select(mask)
        sizes = mask.ids.shape
        found: list[Tensor] = []
        for axis in mask.axes:
            assert isinstance(axis, int)
            index = torch.arange(sizes[axis] if full else 0, device=mask.ids.device)
            if full:
                shape = [-1 if i == axis else 1 for i in range(len(sizes))]
                index = index.reshape(shape).expand(sizes).reshape(-1)
            found.append(self._tag(index, _Place(axis, not full)))
        return tuple(found)

    def spread(self, x: Tensor, tokens: int) -> Tensor:
        """The row of each slot's token: x [*tokens, ...] -> [P, ...]."""
        inner = x.shape[tokens:]
        wide = x.unsqueeze(tokens).expand(*x.shape[:tokens], self.slots, *inner)
        return self._tag(wide.reshape(-1, *inner), _Rows(x))

    def add_up(self, rows: Tensor, like: Tensor) -> Tensor:
        """Σ over the slots of each token: rows [P, ...] -> the shape of `like`."""
        parts = rows.reshape(-1, self.slots, *rows.shape[1:])
        return parts.sum(1).reshape(like.shape).to(like.dtype)


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", func))


def _where(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    choice = loop.tag(args[0])
    if len(args) > 1 and isinstance(args[1], Tensor):
        return NotImplemented
    if isinstance(choice, _Choice) and choice.expert is not None:
        places = loop.places(choice)
        as_tuple = func in _WHERES or kwargs.get("as_tuple", False)
        return places if as_tuple else torch.stack(places, -1)
    if args[0].dim() == 1 and args[0].shape[0] in (loop.count, loop.count + 1):
        hits = _Hits(_Hit(expert) for expert in range(loop.count))
        return (hits,) if func in _WHERES or kwargs.get("as_tuple", False) else hits
    return NotImplemented


def _one_hot(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    ids = args[0]
    axes = (*range(ids.dim()), "e")
    return loop._tag(func(*args, **kwargs), _Choice(ids, axes))


def _equal(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    ids, expert = args[:2]
    if not isinstance(ids, Tensor) or not isinstance(expert, int) or isinstance(expert, bool):
        return NotImplemented
    if ids.dtype not in (torch.int64, torch.int32) or not 0 <= expert < loop.count:
        return NotImplemented
    return loop._tag(func(ids, int(expert)), _Choice(ids, tuple(range(ids.dim())), int(expert)))


def _moved(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    tag = loop.tag(args[0])
    if not isinstance(tag, (_Choice, _Matrix)) or kwargs:
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
    if isinstance(tag, _Choice):
        return loop._tag(result, replace(tag, axes=tuple(tag.axes[dim] for dim in order)))
    turned = tag.turned if order == list(range(rank)) else not tag.turned
    return loop._tag(result, replace(tag, turned=turned))


def _converted(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    tag = loop.tag(args[0])
    if not isinstance(tag, (_Choice, _Matrix)):
        return NotImplemented
    return loop._tag(func(*args, **kwargs), tag)


def _is_any(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    """A mask selects something: where it does not, its turn does nothing."""
    tag = loop.tag(args[0])
    plain = len(args) == 1 and not kwargs
    return True if isinstance(tag, _Choice) and tag.expert is not None and plain else NotImplemented


def _get(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    x, key = args
    keys = key if isinstance(key, tuple) else (key,)
    tag = loop.tag(x)
    if id(x) in loop._stacks and isinstance(keys[0], int) and len(keys) == 1:
        return loop._tag(func(x, int(keys[0])), _Matrix(lambda: x))
    if isinstance(tag, _Choice) and tag.expert is None:
        return _mask_of(loop, func, x, keys, tag)
    first = next((loop.tag(k) for k in keys if loop.tag(k) is not None), None)
    if isinstance(first, _Choice) and first.expert is not None:
        if len(keys) > 1 or not loop.select(first):
            return x[:0] if len(keys) == 1 and len(first.axes) == 1 else NotImplemented
        return x.flatten(0, len(first.axes) - 1) if len(first.axes) > 1 else x
    if isinstance(first, _Place) and not first.empty:
        return _get_places(loop, x, keys)
    return NotImplemented


def _mask_of(loop: ExpertLoop, func: Any, x: Tensor, keys: Any, tag: _Choice) -> Any:
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
    return loop._tag(func(x, plain), _Choice(tag.ids, rest, expert % x.shape[at]))


def _get_places(loop: ExpertLoop, x: Tensor, keys: tuple[Any, ...]) -> Any:
    """x[token], x[token, slot] and the like for all slots, in the order of ids."""
    leading = 1 if keys[0] is None else 0
    tags = [loop.tag(k) for k in keys[leading:]]
    count = next((i for i, t in enumerate(tags) if not isinstance(t, _Place)), len(tags))
    axes = [t.axis for t in tags[:count]]
    rest = (*[None] * leading, slice(None), *keys[leading + count :])
    assert loop.ids is not None
    rank = loop.ids.dim()
    tokens = list(range(max(rank - 1, 1)))
    if axes == tokens and rank > 1:
        rows = loop.spread(x, len(tokens))
        return rows if rest == (slice(None),) else rows[rest]
    if sorted(axes) != list(range(rank)):
        raise CannotRouteError("it reads something by the places of an expert's slots")
    order = [axes.index(axis) for axis in range(rank)]
    if order != list(range(rank)):
        x = x.permute(*order, *range(rank, x.dim()))
    flat = x.reshape(-1, *x.shape[rank:])
    return loop._tag(flat, _Rows(x)) if rest == (slice(None),) else flat[rest]


def _set(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    x, key, value = args
    keys = key if isinstance(key, tuple) else (key,)
    tags = [loop.tag(k) for k in keys]
    first = next((t for t in tags if t is not None), None)
    if isinstance(first, _Place):
        if first.empty:
            return None
        rows = loop.tag(value)
        if loop.ids is not None and loop.ids.dim() == 1 and len(keys) == 1:
            x.copy_(value)  # a token has one expert
            return None
        if not isinstance(rows, _Rows) or rows.added is None or rows.source is not x:
            raise CannotRouteError("it overwrites what another expert gave the same token")
        x.add_(loop.add_up(rows.added, x))
        return None
    if isinstance(first, _Choice) and first.expert is not None and len(keys) == 1:
        if loop.select(first):
            x.copy_(value.reshape(x.shape))
        return None
    return NotImplemented


def _add(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    if kwargs or len(args) != 2:
        return NotImplemented
    for one, other in (args, args[::-1]):
        tag = loop.tag(one)
        if isinstance(tag, _Rows) and tag.added is None and isinstance(other, Tensor):
            return loop._tag(torch.add(one, other), replace(tag, added=other))
    return NotImplemented


def _index_add(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    names = ("self", "dim", "index", "source")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, index, rows = given["self"], given["index"], given["source"]
    place = loop.tag(index)
    if not isinstance(place, _Place):
        return NotImplemented
    if place.empty:
        return x
    assert loop.ids is not None
    if given["dim"] != 0 or place.axis != 0 or loop.ids.dim() > 2:
        raise CannotRouteError("it adds up along something else than tokens")
    total = loop.add_up(rows, x) * given.get("alpha", 1)
    return x.add_(total) if _name(func).endswith("_") else x + total


def _linear(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
    bias = given.get("bias")
    return _product(loop, given["input"], given["weight"], bias, transposed=False)


def _matmul(loop: ExpertLoop, func: Any, args: Any, kwargs: Any) -> Any:
    return NotImplemented if kwargs else _product(loop, args[0], args[1], None, transposed=True)


def _product(loop: ExpertLoop, x: Any, weight: Any, bias: Any, *, transposed: bool) -> Any:
    """x [P, K] · the weight of each slot's own expert."""
    matrix = loop.tag(weight)
    if not isinstance(matrix, _Matrix) or loop.ids is None or x.shape[0] == 0:
        return NotImplemented
    if x.dim() != 2 or weight.dim() != 2:
        raise CannotRouteError(f"an expert takes rows of {x.dim()} axes")
    if x.shape[0] != loop.ids.numel():
        raise CannotRouteError("an expert takes other rows than those of its slots")
    stacked = matrix.stacked()
    if matrix.turned != transposed:
        stacked = stacked.transpose(1, 2)
    offset = loop.tag(bias)
    if bias is not None and not isinstance(offset, _Matrix):
        raise CannotRouteError("an expert's product has a bias that is not its own")
    y = torch.ops.gw.routed_linear(
        x.reshape(-1, loop.slots, x.shape[1]),
        loop.ids.reshape(-1, loop.slots),
        stacked,
        None if offset is None else offset.stacked(),
    )
    return y.reshape(-1, y.shape[2])


_WHERES = frozenset({torch.where, Tensor.where})
_PERMUTES = frozenset({torch.permute, Tensor.permute})
_POINTWISE = frozenset(
    {
        torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.add, Tensor.add,
        Tensor.__add__, Tensor.__radd__, torch.sub, Tensor.sub, Tensor.__sub__, torch.div,
        Tensor.div, Tensor.__truediv__,
    }
)  # fmt: skip
_Handler = Callable[[ExpertLoop, Any, Any, Any], Any]
_HANDLERS: dict[Any, _Handler] = {
    **dict.fromkeys((*_WHERES, torch.nonzero, Tensor.nonzero, torch.argwhere), _where),
    _functional.one_hot: _one_hot,
    **dict.fromkeys((torch.eq, Tensor.eq, Tensor.__eq__), _equal),
    **dict.fromkeys((*_PERMUTES, torch.transpose, Tensor.transpose, torch.t, Tensor.t), _moved),
    Tensor.T.__get__: _moved,  # type: ignore[attr-defined]
    **dict.fromkeys((Tensor.to, Tensor.bool, Tensor.int, Tensor.long, Tensor.float), _converted),
    **dict.fromkeys((torch.any, Tensor.any), _is_any),
    Tensor.__getitem__: _get,
    Tensor.__setitem__: _set,
    **dict.fromkeys(
        (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_), _add
    ),
    **dict.fromkeys((torch.index_add, Tensor.index_add, Tensor.index_add_), _index_add),
    _functional.linear: _linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), _matmul),
}
