"""The type of a node from those of its arguments, computed once for equal calls.

The layers of a decoder are alike, so most nodes that a pass makes are calls that were made before:
the same target, the same constants, arguments of the same shapes, strides and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.node import map_arg

__all__ = ["Inference"]

_CONSTANTS = (int, float, str, torch.dtype, torch.device, torch.layout, type(None))


class Inference:
    """What calls return under one fake mode. Equal calls share what they return; nobody writes to
    it."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def value(self, node: fx.Node, mode: FakeTensorMode) -> Any:
        """What the call `node` returns: a fake tensor, several, or a symbolic number."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        assert callable(node.target)
        return self.call(node.target, args, kwargs, mode)

    def call(self, target: Callable[..., Any], args: Any, kwargs: Any, mode: FakeTensorMode) -> Any:
        """What `target` returns for fake tensors of `mode` and constants."""
        key = _key(target, args, kwargs)
        if key is not None and key in self._known:
            return self._known[key]
        # in torch 2.11 composite operators of C++ do not take symbolic sizes; Python's do
        with mode, torch.no_grad(), enable_python_dispatcher():
            value = target(*args, **kwargs)
        if key is not None and _can_be_shared(value):
            self._known[key] = value
        return value


def _key(target: Callable[..., Any], args: Any, kwargs: Any) -> Hashable | None:
    """Equal for calls that return the same type; None when that cannot be told."""
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return None
    try:
        return target, _freeze(args), _freeze(kwargs)
    except TypeError:
        return None


def _freeze(value: Any) -> Hashable:
    """Raises TypeError for what is neither a constant, a tensor, nor made of such."""
    if isinstance(value, FakeTensor):
        if value.layout is not torch.strided:
            raise TypeError("not a strided tensor")
        sizes = tuple(map(_freeze, (*value.shape, *value.stride(), value.storage_offset())))
        return "tensor", value.dtype, value.device, sizes
    if isinstance(value, torch.SymInt):
        return "symbol", value.node.expr
    if isinstance(value, (list, tuple)):
        return tuple(map(_freeze, value))
    if isinstance(value, dict):
        return tuple((name, _freeze(value[name])) for name in sorted(value))
    if isinstance(value, _CONSTANTS):
        return type(value), repr(value) if isinstance(value, float) else value  # -0.0 and NaN
    raise TypeError(f"{type(value).__name__} is no constant")


def _can_be_shared(value: Any) -> bool:
    """A tensor without sizes or values of its own, several, or nothing."""
    if isinstance(value, (tuple, list)):
        return all(map(_can_be_shared, value))
    return value is None or (
        isinstance(value, FakeTensor)
        and value.constant is None
        and not free_unbacked_symbols(value)
    )
