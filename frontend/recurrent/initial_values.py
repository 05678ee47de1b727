"""What tensors are filled with before anything is computed for them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from graphwright.frontend.recurrent.module_calls import memory_of

__all__ = ["InitialValues"]

aten = torch.ops.aten
_ZEROS = frozenset({aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default})
_ONES = frozenset({aten.ones.default, aten.ones_like.default, aten.new_ones.default})
_FULL = frozenset({aten.full.default, aten.full_like.default, aten.new_full.default})


class InitialValues(TorchDispatchMode):
    """While open, follows memory that is filled with one number, which may be changed as a whole,
    up to the first thing else that is written to it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values: dict[int, float] = {}
        self._settled: set[int] = set()
        self._kept: list[Any] = []  # so that no memory is used twice

    def of(self, tensor: torch.Tensor) -> float:
        """The number; 0 for memory that was never filled with one, as what only is computed is."""
        return self._values.get(memory_of(tensor), 0.0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in pytree.tree_leaves(result):
            if isinstance(made, torch.Tensor):
                self._kept.append(made)
                value = _filled(func, args)
                if value is not None:
                    self._values[memory_of(made)] = value
        if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor):
            self._written(func, args)
        return result

    def _written(self, func: Any, args: Any) -> None:
        place = memory_of(args[0])
        if place not in self._values or place in self._settled:
            return
        whole = args[0].numel() * args[0].itemsize == args[0].untyped_storage().nbytes()
        change = _CHANGES.get(func)
        number = args[1] if len(args) > 1 else 0.0
        if whole and change is not None and isinstance(number, (int, float)):
            self._values[place] = change(self._values[place], float(number))
        else:
            self._settled.add(place)


def _filled(func: Any, args: Any) -> float | None:
    if func in _ZEROS:
        return 0.0
    if func in _ONES:
        return 1.0
    return float(args[1]) if func in _FULL and isinstance(args[1], (int, float)) else None


_CHANGES: dict[Any, Any] = {
    aten.zero_.default: lambda old, number: 0.0,
    aten.fill_.Scalar: lambda old, number: number,
    aten.add_.Tensor: lambda old, number: old + number,
    aten.sub_.Tensor: lambda old, number: old - number,
    aten.mul_.Tensor: lambda old, number: old * number,
}
