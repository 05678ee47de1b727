"""Slots of tokens in a loop over experts: each is one expert's, and the first turn takes all.

What is known of a tensor while the loop runs is its mark: that it says where an expert was chosen,
which places a mask selects, whose rows it holds, or that it is an expert's weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "CannotRouteError",
    "Choice",
    "ExpertSlots",
    "Hit",
    "Hits",
    "Matrix",
    "Place",
    "Rows",
    "name_of",
]

Tensor = torch.Tensor


class CannotRouteError(Exception):
    """Why a block is no loop over experts of the known kind: the end of a sentence."""


@dataclass(frozen=True)
class Choice:
    """A tensor that says where `ids` is an expert: `axes` names its axes, ids' own by number and
    "e" for experts. Without that axis it is the mask of one `expert`."""

    ids: Tensor
    axes: tuple[int | str, ...]
    expert: int | None = None


@dataclass(frozen=True)
class Place:
    """Places that a mask selects along one axis of ids; none if `empty`."""

    axis: int
    empty: bool


@dataclass(frozen=True)
class Rows:
    """The rows of `source` for all slots, to which `added` was added."""

    source: Tensor
    added: Tensor | None = None


@dataclass(frozen=True)
class Matrix:
    """A weight of one expert, standing for that of each slot's own; transposed if `turned`."""

    stacked: Callable[[], Tensor]
    turned: bool = False


class Hit(int):
    """The number of an expert, also where a tensor with one element was expected."""

    def item(self) -> int:
        return int(self)

    def squeeze(self, *_: int) -> Hit:
        return self

    def __getitem__(self, _: Any) -> Hit:
        return self


class Hits(list[Hit]):
    """The numbers of all experts, also where a tensor of them was expected."""

    def tolist(self) -> list[int]:
        return [int(hit) for hit in self]

    def _same(self, *_: int) -> Hits:
        return self

    flatten = squeeze = view = reshape = _same


class ExpertSlots:
    """What a loop over `count` experts selects: all slots in its first turn, then none.

    weights: the lists of tensors, one of each expert, that stand for each other; stacks: tensors
    [count, ...] that hold all experts' weights.
    """

    def __init__(self, count: int, weights: Iterable[list[Tensor]], stacks: Iterable[Tensor]):
        self.count = count
        self.ids: Tensor | None = None
        self.visited: set[int] = set()
        self._first: int | None = None
        self.stacks = {id(tensor) for tensor in stacks}
        self._tags: dict[int, tuple[Tensor, Any]] = {}
        for group in weights:
            matrix = Matrix(lambda group=group: torch.stack(group))  # type: ignore[misc]
            for tensor in group:
                self.mark(tensor, matrix)

    def check_complete(self) -> None:
        """Raises CannotRouteError unless every expert had its turn."""
        missing = sorted(set(range(self.count)) - self.visited)
        if missing:
            raise CannotRouteError(f"expert {missing[0]} of {self.count} never has its turn")

    def mark(self, tensor: Tensor, tag: Any) -> Tensor:
        """`tensor`, of which `tag` is known from now on."""
        self._tags[id(tensor)] = (tensor, tag)  # the tensor is kept: its id must stay its own
        return tensor

    def tag(self, value: Any) -> Any:
        """What is known of a tensor; None for anything else."""
        return self._tags.get(id(value), (None, None))[1] if isinstance(value, Tensor) else None

    def select(self, mask: Choice) -> bool:
        """Does this mask's turn take all slots (the first one does), or none?"""
        assert mask.expert is not None
        self.visited.add(mask.expert)
        if self._first is None:
            self._first, self.ids = mask.expert, mask.ids
        if mask.ids is not self.ids:
            raise CannotRouteError("its experts are selected by more than one routing")
        return mask.expert == self._first

    @property
    def of_each_token(self) -> int:
        """How many experts each token has."""
        assert self.ids is not None
        return int(self.ids.shape[-1]) if self.ids.dim() > 1 else 1

    def places(self, mask: Choice) -> tuple[Tensor, ...]:
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
            found.append(self.mark(index, Place(axis, not full)))
        return tuple(found)

    def spread(self, x: Tensor, tokens: int) -> Tensor:
        """The row of each slot's token: x [*tokens, ...] -> [P, ...]."""
        inner = x.shape[tokens:]
        wide = x.unsqueeze(tokens).expand(*x.shape[:tokens], self.of_each_token, *inner)
        return self.mark(wide.reshape(-1, *inner), Rows(x))

    def add_up(self, rows: Tensor, like: Tensor) -> Tensor:
        """Σ over the slots of each token: rows [P, ...] -> the shape of `like`."""
        parts = rows.reshape(-1, self.of_each_token, *rows.shape[1:])
        return parts.sum(1).reshape(like.shape).to(like.dtype)


def name_of(func: Any) -> str:
    """What a function is called in a message."""
    return str(getattr(func, "__name__", func))
