"""Loops over experts, run once for all tokens: what each expert selects becomes every slot.

A loop such as

    for e, expert in enumerate(self.experts):
        slot, token = torch.where(mask[e])
        y.index_add_(0, token, expert(x[token]) * weights[token, slot, None])

cannot be traced: how many tokens an expert gets depends on values. But each slot of a token belongs
to one expert, and the body is the same for all. So the first expert's turn takes all slots, in
which every matrix of an expert is that of the slot's own expert; the other turns find nothing.
Where some experts lack a weight that others have, as those that pass on what they get, these are
two groups, and each has such a turn.
Whether a block really is such a loop is not decided here: see `experts.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from graphwright.frontend.expert_marks import CannotRouteError, Matrix, name_of
from graphwright.frontend.expert_orders import ORDERS
from graphwright.frontend.expert_products import PRODUCTS
from graphwright.frontend.expert_selections import SELECTIONS
from graphwright.frontend.expert_slots import ExpertSlots

__all__ = ["CannotRouteError", "ExpertLoop"]

Tensor = torch.Tensor
_POINTWISE = frozenset(
    {
        torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.add, Tensor.add,
        Tensor.__add__, Tensor.__radd__, torch.sub, Tensor.sub, Tensor.__sub__, torch.div,
        Tensor.div, Tensor.__truediv__,
    }
)  # fmt: skip
_HANDLERS = {**SELECTIONS, **PRODUCTS, **ORDERS}


class ExpertLoop(TorchFunctionMode):
    """While open, a loop over experts selects all slots in the first turn of each group.

    Arguments as those of ExpertSlots.
    """

    def __init__(
        self, counts: frozenset[int], weights: Iterable[list[Tensor]], stacks: Iterable[Tensor]
    ):
        super().__init__()
        self._slots = ExpertSlots(counts, weights, stacks)

    @property
    def count(self) -> int:
        """How many experts there are. Raises CannotRouteError while that is not known."""
        return self._slots.count

    @property
    def ids(self) -> Tensor | None:
        """The experts of each token's slots; None while no turn has selected any."""
        return self._slots.ids

    def check_complete(self) -> None:
        """Raises CannotRouteError unless every expert had its turn."""
        self._slots.check_complete()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(self._slots, func, args, kwargs)
            if result is not NotImplemented:
                return result
        return func(*self._plain(func, args), **kwargs)

    def _plain(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, a vector of one expert replaced by that of each slot's own."""
        if self._slots.ids is None or not any(
            isinstance(self._slots.tag(arg), Matrix) for arg in args
        ):
            return args
        rows = [arg for arg in args if isinstance(arg, Tensor) and self._slots.tag(arg) is None]
        if all(row.shape[0] == 0 for row in rows) or func not in _POINTWISE:
            if rows and rows[0].shape[0] != 0:
                raise CannotRouteError(f"an expert's weight goes into {name_of(func)}")
            return args
        return tuple(self._vector(arg) for arg in args)

    def _vector(self, arg: Any) -> Any:
        matrix = self._slots.tag(arg)
        if not isinstance(matrix, Matrix):
            return arg
        if arg.dim() != 1 or self._slots.ids is None:
            raise CannotRouteError("an expert's matrix is used element by element")
        return matrix.stacked()[self._slots.own.reshape(-1)]
