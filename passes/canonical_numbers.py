"""Canonical spellings of pointwise ops and reductions. Each rule returns the new node, or None."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor
from graphwright.passes.canonical_layout import same_value
from graphwright.passes.drop_no_ops import same_kind

__all__ = ["NUMBER_RULES", "fill_of"]

aten = torch.ops.aten
_CASTS = (
    aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other,
    aten.type_as.default,
)  # fmt: skip
_FILLED = {
    aten.zeros_like.default: 0, aten.new_zeros.default: 0, aten.zeros.default: 0,
    aten.ones_like.default: 1, aten.new_ones.default: 1, aten.ones.default: 1,
}  # fmt: skip
_FILLED_WITH = (aten.full.default, aten.full_like.default)
Rule = Callable[[Program, fx.Node], fx.Node | None]


def fill_of(node: Any) -> Any:
    """The number that all elements of `node` are; None when it is not plainly one."""
    if not isinstance(node, fx.Node):
        return None
    if node.target in _FILLED:
        return _FILLED[node.target]
    value = node.args[1] if node.target in _FILLED_WITH else None
    return value if isinstance(value, (int, float)) else None


def _add_nothing(program: Program, node: fx.Node) -> fx.Node | None:
    """x + zeros → x."""
    for one, other in (node.args[:2], node.args[1::-1]):
        if fill_of(one) != 0 or not isinstance(other, fx.Node) or node.kwargs:
            continue
        if same_kind(other.meta["val"], node.meta["val"]):
            return other
    return None


def _add(program: Program, node: fx.Node) -> fx.Node | None:
    return _add_nothing(program, node) or _broadcast_once(program, node)


def _broadcast_once(program: Program, node: fx.Node) -> fx.Node | None:
    """x + expand(y) → x + y where the sum itself broadcasts y."""
    for place in (0, 1):
        wide, other = node.args[place], node.args[1 - place]
        if not (isinstance(wide, fx.Node) and wide.target is aten.expand.default):
            continue
        narrow: Any = wide.args[0]
        value = node.meta["val"]
        if isinstance(other, fx.Node) and same_kind(other.meta["val"], value):
            args = (narrow, other) if place == 0 else (other, narrow)
            new = same_value(program, node, node.target, *args)  # type: ignore[arg-type]
            new.kwargs = node.kwargs
            return new
    return None


def _bound_by(target: Any) -> Rule:
    """minimum(x, zeros) → clamp_max(x, 0), and alike."""

    def rule(program: Program, node: fx.Node) -> fx.Node | None:
        for one, other in (node.args[:2], node.args[1::-1]):
            number = fill_of(one)
            if number is None or not isinstance(other, fx.Node):
                continue
            if same_kind(other.meta["val"], node.meta["val"]):
                return same_value(program, node, target, other, number)
        return None

    return rule


def _to_overload(target: Any) -> Rule:
    """op.Scalar(x, 2) → op.Tensor(x, 2): the same op with one name fewer."""

    def rule(program: Program, node: fx.Node) -> fx.Node | None:
        if set(node.kwargs) - {"alpha"} or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
            return None
        return same_value(program, node, target, *node.args)

    return rule


def _reverse_subtract(program: Program, node: fx.Node) -> fx.Node | None:
    """rsub(x, y) = y - x."""
    x, y = node.args[:2]
    alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    assert isinstance(x, fx.Node)
    if alpha != 1:
        return None
    if isinstance(y, fx.Node):
        return same_value(program, node, aten.sub.Tensor, y, x)
    minus = program.call(node, aten.neg.default, x)
    return same_value(program, node, aten.add.Tensor, minus, y)


def _square(program: Program, node: fx.Node) -> fx.Node | None:
    return same_value(program, node, aten.pow.Tensor_Scalar, node.args[0], 2)


def _multiply(program: Program, node: fx.Node) -> fx.Node | None:
    """x * x → pow(x, 2); x * ones → x."""
    for one, other in (node.args[:2], node.args[1::-1]):
        if fill_of(one) != 1 or not isinstance(other, fx.Node):
            continue
        if same_kind(other.meta["val"], node.meta["val"]):
            return other
    if node.args[0] is node.args[1] and node.meta["val"].dtype.is_floating_point:
        return _square(program, node)
    return None


def _power(program: Program, node: fx.Node) -> fx.Node | None:
    """A whole exponent is an int."""
    exponent = node.args[1]
    if isinstance(exponent, float) and exponent.is_integer():
        x: Any = node.args[0]
        if x.meta["val"].dtype.is_floating_point:
            return same_value(program, node, aten.pow.Tensor_Scalar, x, int(exponent))
    return None


def _embedding(program: Program, node: fx.Node) -> fx.Node | None:
    """What only training looks at (padding, gradients) is dropped; a constant id is one row."""
    table, ids = node.args[:2]
    row = fill_of(ids)
    if isinstance(row, int) and isinstance(table, fx.Node) and isinstance(ids, fx.Node):
        entry = program.call(node, aten.select.int, table, 0, row)
        sizes = [
            program.call(node, aten.sym_size.int, ids, i)
            if isinstance(size, torch.SymInt)
            else size
            for i, size in enumerate(ids.meta["val"].shape)
        ]
        return same_value(program, node, aten.expand.default, entry, [*sizes, -1])
    if len(node.args) == 2 and not node.kwargs:
        return None
    return same_value(program, node, aten.embedding.default, *node.args[:2])


def _cast(program: Program, node: fx.Node) -> fx.Node | None:
    """Another dtype; layouts and devices are not spoken of."""
    dtype = node.meta["val"].dtype
    if node.target is aten._to_copy.default and dict(node.kwargs) == {"dtype": dtype}:
        return None
    return same_value(program, node, aten._to_copy.default, node.args[0], dtype=dtype)


def _reduce(program: Program, node: fx.Node) -> fx.Node | None:
    """A reduced axis counts from the front, the last axis is -1."""
    x: Any = node.args[0]
    rank = x.meta["val"].dim()
    if len(node.args) < 2 or not isinstance(node.args[1], (list, tuple)):
        return None
    dims = [_axis(int(dim), rank) for dim in node.args[1]]  # type: ignore[arg-type]
    if dims == list(node.args[1]):
        return None
    new = same_value(program, node, node.target, x, dims, *node.args[2:])  # type: ignore[arg-type]
    new.kwargs = node.kwargs
    return new


def _norm(program: Program, node: fx.Node) -> fx.Node | None:
    """A norm of another order than 2  →  Σ|x|, the largest or the least |x|, or (Σ|x|^p)^(1/p)."""
    given: list[Any] = [*node.args, *(None, 2, None, False)[len(node.args) :]]
    x, order, dims, keepdim = given[:4]
    if order in (0, 2) or not dims or node.kwargs.get("dtype") or len(given) > 4:
        return None
    size = program.call(node, aten.abs.default, x)
    if abs(order) == math.inf:
        target = aten.amax.default if order > 0 else aten.amin.default
        return same_value(program, node, target, size, dims, keepdim)
    if order == 1:
        return same_value(program, node, aten.sum.dim_IntList, size, dims, keepdim)
    powers = program.call(node, aten.pow.Tensor_Scalar, size, order)
    total = program.call(node, aten.sum.dim_IntList, powers, dims, keepdim)
    return same_value(program, node, aten.pow.Tensor_Scalar, total, 1 / order)


def _identity(program: Program, node: fx.Node) -> fx.Node | None:
    """eye(n)  →  a weight with its values."""
    size, value = node.args[0], node.meta["val"]
    if not isinstance(size, int) or not all(isinstance(n, int) for n in value.shape):
        return None
    matrix = torch.eye(*value.shape, dtype=value.dtype)
    return program.add_weight("identity", ConstantTensor.of(matrix, "identity"))


def _axis(dim: int, rank: int) -> int:
    dim %= rank
    return -1 if dim == rank - 1 else dim


NUMBER_RULES: dict[Any, Rule] = {
    aten.add.Tensor: _add,
    aten.sub.Tensor: _broadcast_once,
    aten.add.Scalar: _to_overload(aten.add.Tensor),
    aten.sub.Scalar: _to_overload(aten.sub.Tensor),
    aten.mul.Scalar: _to_overload(aten.mul.Tensor),
    aten.div.Scalar: _to_overload(aten.div.Tensor),
    aten.rsub.Scalar: _reverse_subtract,
    aten.rsub.Tensor: _reverse_subtract,
    aten.square.default: _square,
    aten.mul.Tensor: _multiply,
    aten.pow.Tensor_Scalar: _power,
    aten.minimum.default: _bound_by(aten.clamp_max.default),
    aten.maximum.default: _bound_by(aten.clamp_min.default),
    **dict.fromkeys(_CASTS, _cast),
    aten.embedding.default: _embedding,
    aten.mean.dim: _reduce,
    aten.sum.dim_IntList: _reduce,
    aten.amax.default: _reduce,
    aten.amin.default: _reduce,
    aten.var.correction: _reduce,
    aten.linalg_vector_norm.default: _norm,
    aten.eye.default: _identity,
    aten.eye.m: _identity,
}
