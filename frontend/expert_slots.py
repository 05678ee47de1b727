"""Slots of tokens in a loop over experts: each is one expert's, and the first turn takes all."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch

from graphwright.frontend.expert_marks import (
    CannotRouteError,
    Choice,
    Matrix,
    Place,
    Rows,
    Stack,
)

__all__ = ["ExpertSlots"]

Tensor = torch.Tensor


class ExpertSlots:
    """What a loop over experts selects: all slots in the first turn of a group, then none.

    counts: how many experts there may be; which it is shows where the loop looks for those that
    were hit. weights: the lists of tensors, one of each expert, that stand for each other; stacks:
    tensors [experts, ...] that hold all experts' weights. Experts that have none of some weight are
    a group of their own: what the loop does in their turn is something else.
    """

    def __init__(
        self, counts: frozenset[int], weights: Iterable[list[Tensor]], stacks: Iterable[Tensor]
    ):
        self.counts = counts
        self.ids: Tensor | None = None
        self.chosen: Tensor | None = None  # by the last choice among as many experts
        self.visited: set[int] = set()
        self._ordered = False
        self._firsts: dict[range, int] = {}  # of each group, whose turn took its slots
        self._group = range(0)
        self._stacks = {id(tensor): tensor for tensor in stacks}
        self._tags: dict[int, tuple[Tensor, Any]] = {}
        for group in weights:
            matrix = Matrix(lambda group=group: torch.stack(group))  # type: ignore[misc]
            for tensor in group:
                self.mark(tensor, matrix)

    @property
    def count(self) -> int:
        """How many experts there are. Raises CannotRouteError while that is not known."""
        if len(self.counts) > 1:
            raise CannotRouteError(f"it may have any of {sorted(self.counts)} experts")
        return next(iter(self.counts))

    def settle(self, places: int) -> bool:
        """Is `places` the number of experts, or one more? Then their number is known."""
        for count in (places, places - 1):
            if count in self.counts:
                self.counts = frozenset([count])
                return True
        return False

    def check_complete(self) -> None:
        """Raises CannotRouteError unless every expert had its turn."""
        if self._ordered:
            return
        if len(self.counts) > 1:
            self.settle(max(self.visited) + 1)
        missing = sorted(set(range(self.count)) - self.visited)
        if missing:
            raise CannotRouteError(f"expert {missing[0]} of {self.count} never has its turn")

    def order(self, ids: Tensor) -> None:
        """All slots, [P], are taken in the order of their experts, and so every expert's are."""
        if self.ids is not None and self.ids is not ids:
            raise CannotRouteError("its experts are selected by more than one routing")
        self.ids, self._ordered = ids, True

    def mark(self, tensor: Tensor, tag: Any) -> Tensor:
        """`tensor`, of which `tag` is known from now on."""
        self._tags[id(tensor)] = (tensor, tag)  # the tensor is kept: its id must stay its own
        return tensor

    def tag(self, value: Any) -> Any:
        """What is known of a tensor; None for anything else."""
        return self._tags.get(id(value), (None, None))[1] if isinstance(value, Tensor) else None

    def is_weight(self, value: Any) -> bool:
        """Is `value` one of the weights that experts may have their parts of?"""
        return id(value) in self._stacks

    def is_stack(self, value: Any) -> bool:
        """Is `value` a weight, or a view of one, with one part for each expert?"""
        if isinstance(self.tag(value), Stack):
            return True
        return self.is_weight(value) and (value.dim() == 3 or value.shape[0] in self.counts)

    @property
    def groups(self) -> list[range]:
        """The experts whose turns do the same, with weights of their own."""
        lengths = {len(each) for each in self._stacks.values() if each.dim() == 3}
        ends = sorted({0, self.count} | {n for n in lengths if 1 < n < self.count})
        return [range(first, last) for first, last in pairwise(ends)]

    def select(self, mask: Choice) -> bool:
        """Does this mask's turn take all slots (the first one of its group does), or none?"""
        assert mask.expert is not None
        self.visited.add(mask.expert)
        if self.ids is None:
            self.ids = mask.ids
        if mask.ids is not self.ids:
            raise CannotRouteError("its experts are selected by more than one routing")
        if len(self.counts) > 1:
            self._group = range(max(self.counts))
        else:
            self._group = next(group for group in self.groups if mask.expert in group)
        return self._firsts.setdefault(self._group, mask.expert) == mask.expert

    @property
    def of_each_token(self) -> int:
        """How many experts each token has."""
        assert self.ids is not None
        return int(self.ids.shape[-1]) if self.ids.dim() > 1 else 1

    @property
    def is_one_group(self) -> bool:
        """Do the turns of all experts do the same?"""
        return len(self.counts) > 1 or len(self.groups) == 1

    @property
    def own(self) -> Tensor:
        """The expert of each slot, as ids are; any of the group whose turn it is for a slot of
        another group."""
        assert self.ids is not None
        return self.ids if self.is_one_group else self.ids.clamp(self._group[0], self._group[-1])

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
        """Σ over the slots of each token, of the group whose turn it is: rows [P, ...] -> the shape
        of `like`."""
        if not self.is_one_group:
            assert self.ids is not None
            flat = self.ids.reshape(-1, *[1] * (rows.dim() - 1))
            within = (flat >= self._group[0]) & (flat <= self._group[-1])
            rows = torch.where(within, rows, 0.0)
        parts = rows.reshape(-1, self.of_each_token, *rows.shape[1:])
        return parts.sum(1).reshape(like.shape).to(like.dtype)
