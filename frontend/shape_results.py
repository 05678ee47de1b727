"""What ops return for tensors without values, computed once for operands of equal types."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.utils import _pytree as pytree

__all__ = ["ShapeResults", "constant", "type_of"]

aten = torch.ops.aten
_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout,
          torch.memory_format)  # fmt: skip


class ShapeResults:
    """Makes calls for fake tensors of one mode; those made before only by the type they return.

    Layers are alike, so most are; torch takes a third of a millisecond for one, this a tenth.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[Hashable, Callable[[Any], FakeTensor]] = {}  # given the first operand
        self._weights: dict[int, tuple[torch.Tensor, FakeTensor]] = {}  # by id, and what is like it

    def of(self, func: Any, args: Any, kwargs: Any, leaves: Sequence[Any], structure: Any) -> Any:
        """What `func` returns; `leaves` and `structure` are its flattened arguments."""
        key: Hashable = None
        kind = _kind(func)
        if kind is not _Kind.OTHER and not any(map(_known_values, leaves)):
            key = (func, structure, *map(type_of, leaves))
            if key in self._known:
                return self._known[key](leaves[0])
        if any(map(_has_values, leaves)) and func is not aten.lift_fresh.default:
            like = [self._mode.from_tensor(x) if _has_values(x) else x for x in leaves]
            args, kwargs = pytree.tree_unflatten(like, structure)  # which torch remembers
        result = func(*args, **kwargs)
        if key is not None and type(result) is FakeTensor and result.constant is None:
            type_ = tuple(result.shape), result.stride(), result.dtype, result.device
            if kind is _Kind.NEW:
                self._known[key] = lambda _: self._make(*type_)
            elif isinstance(leaves[0], torch.Tensor) and leaves[0].dtype is result.dtype:
                offset = int(result.storage_offset() - leaves[0].storage_offset())
                self._known[key] = functools.partial(self._view, type_, offset)
        return result

    def _view(self, type_: tuple[Any, ...], offset: int, base: torch.Tensor) -> FakeTensor:
        """A view of `base` that begins `offset` elements behind it."""
        shape, stride, _, device = type_
        like = self._weight(base) if _has_values(base) else base
        with in_kernel_invocation_manager(self._mode):
            view = torch.as_strided(like, shape, stride, like.storage_offset() + offset)
        return FakeTensor(self._mode, view, device)

    def _weight(self, tensor: torch.Tensor) -> FakeTensor:
        """Something of the type of `tensor`, the same each time."""
        if id(tensor) not in self._weights:
            like = self._make(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            self._weights[id(tensor)] = tensor, like
        return self._weights[id(tensor)][1]

    def _make(self, shape: Any, stride: Any, dtype: Any, device: Any) -> FakeTensor:
        with torch._C._DisableTorchDispatch():
            meta = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        return FakeTensor(self._mode, meta, device)


class _Kind(enum.Enum):
    """What an op returns: one tensor with memory of its own, one view of its first operand, or
    something else."""

    NEW = "new"
    VIEW = "view"
    OTHER = "other"


@functools.cache
def _kind(func: Any) -> _Kind:
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable or len(schema.returns) != 1:
        return _Kind.OTHER
    if func is aten.lift_fresh.default or str(schema.returns[0].type) != "Tensor":
        return _Kind.OTHER
    if func is aten._unsafe_view.default or schema.returns[0].alias_info is not None:
        return _Kind.VIEW
    return _Kind.NEW


def _has_values(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)


def _known_values(value: Any) -> bool:
    return isinstance(value, FakeTensor) and value.constant is not None


def type_of(value: Any) -> Hashable:
    if not isinstance(value, torch.Tensor):
        return constant(value)
    return value.dtype, value.device, tuple(value.shape), value.stride()


def constant(value: Any) -> tuple[Any, Any]:
    """Equal for equal constants, and different for 1, 1.0 and True; other objects are themselves,
    and a tensor is never a constant."""
    if isinstance(value, _PLAIN):
        return type(value), repr(value) if isinstance(value, (float, complex)) else value
    if isinstance(value, torch.SymInt):
        return "symbol", value.node.expr
    return "object", id(value)
