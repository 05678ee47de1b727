"""Canonical spellings of matrix products: by a weight it is `linear`, over whole batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import row_axis, size_of
from graphwright.ir.levels import POINTWISE
from graphwright.ir.program import Program
from graphwright.passes.canonical_layout import reshape_like, same_value

__all__ = ["MATRIX_RULES"]

aten = torch.ops.aten


def _is_weight(program: Program, node: Any) -> bool:
    """A matrix that is a weight, possibly moved or cast."""
    moves = (aten.permute.default, aten._to_copy.default, aten.t.default, aten.transpose.int)
    while isinstance(node, fx.Node) and node.target in moves:
        node = node.args[0]
    return program.weight_of(node) is not None


def _linear(
    program: Program, node: fx.Node, x: fx.Node, weight: fx.Node, bias: Any = None
) -> fx.Node | None:
    """x · weight (+ bias) as linear, which takes the weight transposed."""
    if weight.meta["val"].dim() != 2 or not _is_weight(program, weight):
        return None
    turned = program.call(node, aten.permute.default, weight, [1, 0])
    args = (x, turned) if bias is None else (x, turned, bias)
    return same_value(program, node, aten.linear.default, *args)


def _addmm(program: Program, node: fx.Node) -> fx.Node | None:
    bias, x, weight = node.args[:3]
    assert isinstance(bias, fx.Node) and isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    plain = node.kwargs.get("beta", 1) == 1 and node.kwargs.get("alpha", 1) == 1
    if not plain or bias.meta["val"].dim() != 1:
        return None
    return _linear(program, node, x, weight, bias)


def _matmul(program: Program, node: fx.Node) -> fx.Node | None:
    x, other = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(other, fx.Node)
    left, right = x.meta["val"], other.meta["val"]
    if min(left.dim(), right.dim()) >= 2 and size_of(left.shape[-1]) == 1:
        return same_value(program, node, aten.mul.Tensor, x, other)  # an outer product
    if left.dim() == 2 and right.dim() > 2 and _is_weight(program, x):
        return _weight_first(program, node, x, other)
    if left.dim() < 2:
        return None
    return _linear(program, node, x, other)


def _weight_first(program: Program, node: fx.Node, weight: fx.Node, x: fx.Node) -> fx.Node:
    """weight [m, k] · x [..., k, n]  →  linear over the columns of x, as its rows."""
    turned = program.call(node, aten.transpose.int, x, -1, -2)
    rows = program.call(node, aten.linear.default, turned, weight)
    return program.call(node, aten.transpose.int, rows, -1, -2)


def _baddbmm(program: Program, node: fx.Node) -> fx.Node | None:
    bias, x, other = node.args[:3]
    if node.kwargs.get("beta", 1) != 1 or node.kwargs.get("alpha", 1) != 1:
        return None
    product = program.call(node, aten.bmm.default, x, other)
    return same_value(program, node, aten.add.Tensor, product, bias)


def _sink_reshape(program: Program, node: fx.Node) -> fx.Node | None:
    """op(reshape(x)) → reshape(op(x)) where the reshape only drops the batch axis of one."""
    inputs = [item for item in node.all_input_nodes if not _broadcasts(program, item, node)]
    if node.args[0] not in inputs or not all(_drops_batch(item) for item in inputs):
        return None
    value = node.meta["val"]
    shapes = [[size_of(s) for s in item.meta["val"].shape] for item in inputs]
    if row_axis(value) != 0 or any(len(shape) != value.dim() for shape in shapes):
        return None
    swap = {item: _with_batch(program, node, item) for item in inputs}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: swap.get(n, n))
    inner = program.call(node, node.target, *args, **kwargs)  # type: ignore[arg-type]
    if "stack_trace" in node.meta:
        inner.meta["stack_trace"] = node.meta["stack_trace"]
    return reshape_like(program, node, inner, node)


def _norm(program: Program, node: fx.Node) -> fx.Node | None:
    """A norm behind the axis of the tokens  →  permute(norm(permute(x))), with a row a token."""
    x: Any = node.args[0]
    sizes = [size_of(size) for size in x.meta["val"].shape]
    tokens = [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
    normed: Any = node.args[1]
    if row_axis(x.meta["val"]) is not None or len(tokens) != 1:
        return _sink_reshape(program, node)
    if tokens[0] >= len(sizes) - len(normed):
        return None
    first = [0, *tokens] if sizes[0] == 1 else tokens
    order = first + [axis for axis in range(len(sizes)) if axis not in first]
    turned = program.call(node, aten.permute.default, x, order)
    rows = program.call(node, node.target, turned, *node.args[1:], **node.kwargs)  # type: ignore[arg-type]
    rows.meta["stack_trace"] = node.meta.get("stack_trace")
    back = [order.index(axis) for axis in range(len(sizes))]
    return same_value(program, node, aten.permute.default, rows, back)


def _broadcasts(program: Program, item: fx.Node, node: fx.Node) -> bool:
    """A weight that means the same with one more axis in front: a vector, or linear's matrix."""
    matrix = node.target is aten.linear.default and item is not node.args[0]
    return _is_weight(program, item) and (matrix or item.meta["val"].dim() <= 1)


def _drops_batch(node: fx.Node) -> bool:
    """Is `node` a [T, ...] that was reshaped from some [1, T, ...]?"""
    if node.target is not aten.reshape.default:
        return False
    source: Any = node.args[0]
    return row_axis(source.meta["val"]) == 1 and row_axis(node.meta["val"]) == 0


def _with_batch(program: Program, before: fx.Node, node: fx.Node) -> fx.Node:
    """The value of `node`, [T, ...], as [1, T, ...]."""
    source: Any = node.args[0]
    shape = [size_of(size) for size in node.meta["val"].shape]
    if [size_of(size) for size in source.meta["val"].shape] == [1, *shape]:
        return source  # type: ignore[no-any-return]
    return program.call(before, aten.reshape.default, source, [1, -1, *shape[1:]])


MATRIX_RULES: dict[Any, Callable[[Program, fx.Node], fx.Node | None]] = {
    **{getattr(getattr(aten, name.split(".")[0]), name.split(".")[1]): _sink_reshape
       for name in sorted(POINTWISE)},
    aten.layer_norm.default: _norm,
    aten.rms_norm.default: _norm,
    aten.linear.default: _sink_reshape,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _baddbmm,
    aten.mm.default: _matmul,
    aten.matmul.default: _matmul,
}  # fmt: skip
