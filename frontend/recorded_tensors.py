"""Tensors that stand for weights: what is done to them becomes an expression, nothing is read.

So a library's own loader, which renames, stacks, cuts and joins what a checkpoint holds, says for
each parameter of a model how it is made of stored tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphwright.ir.weights import Expression, Weight

__all__ = ["RecordedTensor", "load_buffers", "loaded", "recorded_weight"]

aten = torch.ops.aten
_SAME = (aten.alias.default, aten.detach.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default)
_PLACEMENT = ("device", "layout", "pin_memory", "non_blocking", "memory_format")


class RecordedTensor(torch.Tensor):
    """A CPU tensor without memory, whose values are those of `weight`.

    An op on it gives another one, over an expression. Ops that write in place are refused with a
    NotImplementedError.
    """

    weight: Weight

    @staticmethod
    def __new__(cls, weight: Weight) -> RecordedTensor:
        made: RecordedTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, weight.shape, dtype=weight.dtype, device=torch.device("cpu")
        )
        made.weight = weight
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"RecordedTensor({self.weight.describe()})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _SAME:
            return cls(args[0].weight)
        if function in _VIEWS:  # of what seems contiguous here and need not be so when loaded
            function = aten.reshape.default
        if function._schema.is_mutable:
            raise NotImplementedError(f"{function} writes into a tensor that is not loaded")
        given = (list(args), dict(kwargs or {}))
        args, kwargs = pytree.tree_map_only(RecordedTensor, lambda each: each.weight, given)
        assert kwargs is not None
        if function is aten._to_copy.default:
            kwargs = {name: kwargs[name] for name in kwargs if name not in _PLACEMENT}
            if kwargs.get("dtype", args[0].dtype) == args[0].dtype:
                return cls(args[0])
        shapes = [schema.type.kind() for schema in function._schema.returns]
        if shapes == ["TensorType"]:
            return cls(Expression.of(function, *args, **kwargs))
        count = len(_on_meta(function, args, kwargs))
        parts = (Expression.of(function, *args, output=i, **kwargs) for i in range(count))
        return [cls(part) for part in parts]


def recorded_weight(tensor: torch.Tensor) -> Weight | None:
    """The weight that `tensor` stands for; None for a tensor that has its values."""
    return tensor.weight if isinstance(tensor, RecordedTensor) else None


def loaded(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with values, which are computed anew for each call where they were recorded."""
    return tensor.weight.load() if isinstance(tensor, RecordedTensor) else tensor


def load_buffers(model: nn.Module) -> None:
    """Gives the buffers of `model` their values: traces and modules look at them."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = loaded(buffer)


def _on_meta(function: Any, args: Any, kwargs: Any) -> Any:
    meta = pytree.tree_map_only(
        Weight, lambda w: torch.empty(w.shape, dtype=w.dtype, device="meta"), (args, kwargs)
    )
    return function(*meta[0], **meta[1])
