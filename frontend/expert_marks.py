"""What is known of a tensor while a loop over experts runs: its mark.

It says where an expert was chosen, which places a mask selects, whose rows it holds, in which order
slots are, or that it is an expert's weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "CannotRouteError",
    "Choice",
    "Hit",
    "Hits",
    "Matrix",
    "Order",
    "Owner",
    "Place",
    "Rows",
    "Stack",
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


@dataclass(frozen=True)
class Stack:
    """A view of a weight with one part for each expert."""


@dataclass(frozen=True)
class Order:
    """The places of all slots, sorted by expert: while the loop runs, in their own order."""


@dataclass(frozen=True)
class Owner:
    """The token of each of these places, where every token has so many `slots`."""

    slots: int


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


def name_of(func: Any) -> str:
    """What a function is called in a message."""
    return str(getattr(func, "__name__", func))
