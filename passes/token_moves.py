"""How ops that move elements, and compute nothing, carry the token axis."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.passes.token_rule import (
    MixesTokensError,
    TokenAxes,
    argument,
    dims_of,
    first_argument,
)

__all__ = [
    "expanded",
    "joined",
    "padded",
    "permuted",
    "repeated",
    "reshaped",
    "selected",
    "sliced",
    "squeezed",
    "transposed",
    "unbound",
    "unsqueezed",
]

aten = torch.ops.aten


def permuted(node: fx.Node, axes: TokenAxes) -> int:
    """Of dims in another order."""
    value, axis = first_argument(node, axes)
    dims = [int(dim) % value.dim() for dim in argument(node, 1, "dims")]
    return dims.index(axis)


def transposed(node: fx.Node, axes: TokenAxes) -> int:
    """Of two dims that change places."""
    value, axis = first_argument(node, axes)
    dims: tuple[Any, ...] = node.args[1:3] if node.target is aten.transpose.int else (0, -1)
    one, two = (int(dim) % value.dim() for dim in dims)
    return {one: two, two: one}.get(axis, axis)


def reshaped(node: fx.Node, axes: TokenAxes) -> int:
    """Of a view: the tokens must be one axis of it, too."""
    value, axis = first_argument(node, axes)
    result = node.meta["val"].shape
    new = [i for i, size in enumerate(result) if size_of(size) == size_of(value.shape[axis])]
    for candidate in new:
        sizes = [size_of(s) for s in (*value.shape[:axis], *result[:candidate])]
        if all(isinstance(s, int) for s in sizes) and math.prod(sizes[:axis]) == math.prod(
            sizes[axis:]
        ):
            return candidate
    raise MixesTokensError("reshapes tokens into another axis")


def unsqueezed(node: fx.Node, axes: TokenAxes) -> int:
    """With a new dim of size 1."""
    value, axis = first_argument(node, axes)
    dim = int(argument(node, 1, "dim")) % (value.dim() + 1)
    return axis + int(dim <= axis)


def squeezed(node: fx.Node, axes: TokenAxes) -> int:
    """Without dims of size 1."""
    value, axis = first_argument(node, axes)
    dims = dims_of(argument(node, 1, "dim"), value.dim())
    return axis - sum(1 for dim in dims if dim < axis and size_of(value.shape[dim]) == 1)


def expanded(node: fx.Node, axes: TokenAxes) -> int:
    """With dims of size 1 repeated, or new ones in front."""
    value, axis = first_argument(node, axes)
    return int(axis + node.meta["val"].dim() - value.dim())


def repeated(node: fx.Node, axes: TokenAxes) -> int:
    """With elements repeated along other axes."""
    value, axis = first_argument(node, axes)
    counts: Any = node.args[1]
    axis += len(counts) - value.dim()
    if counts[axis] != 1:
        raise MixesTokensError("repeats the tokens")
    return axis


def sliced(node: fx.Node, axes: TokenAxes) -> int:
    """Of a part of another axis, or all of this one."""
    value, axis = first_argument(node, axes)
    dim = int(argument(node, 1, "dim", 0)) % value.dim()
    if dim == axis and size_of(node.meta["val"].shape[dim]) != size_of(value.shape[dim]):
        raise MixesTokensError("takes some of the tokens")
    return axis


def selected(node: fx.Node, axes: TokenAxes) -> int:
    """Of one entry of another axis."""
    value, axis = first_argument(node, axes)
    dim = int(argument(node, 1, "index")) % value.dim()
    if dim == axis:
        raise MixesTokensError("takes one of the tokens")
    return axis - int(dim < axis)


def unbound(node: fx.Node, axes: TokenAxes) -> int:
    """Of each of the entries of another axis."""
    value, axis = first_argument(node, axes)
    dim = int(argument(node, 1, "dim", 0)) % value.dim()
    if dim == axis:
        raise MixesTokensError("takes the tokens apart")
    return axis - int(dim < axis)


def joined(node: fx.Node, axes: TokenAxes) -> int:
    """Of values side by side, or stacked."""
    parts: Any = node.args[0]
    found = {axes[part] for part in parts}
    if len(found) != 1:
        raise MixesTokensError("joins values of some tokens with others")
    axis: Any = found.pop()
    rank = node.meta["val"].dim()
    dim = int(argument(node, 1, "dim", 0)) % rank
    if node.target is aten.stack.default:
        return int(axis + int(dim <= axis))
    if dim == axis:
        raise MixesTokensError("joins values along the token axis")
    return int(axis)


def padded(node: fx.Node, axes: TokenAxes) -> int:
    """With padding at the ends of other axes."""
    value, axis = first_argument(node, axes)
    pads: Any = node.args[1]
    behind = value.dim() - 1 - axis
    if any(pads[2 * behind : 2 * behind + 2]):
        raise MixesTokensError("pads or shifts the tokens")
    return axis
