"""Shape ops as maps of indices: which element of which input an element of the result is.

The row axis, the only symbolic one, has index `row` in every value that has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.backends.regions.index import Index, flatten, unflatten
from graphwright.ir.errors import BackendError

__all__ = ["MOVES", "Arguments", "Piece", "arguments", "broadcast", "pieces", "refuse", "shape_of"]

Arguments = dict[str, Any]
Indices = list[Index]
ZERO = Index(frozenset())


def refuse(node: fx.Node, why: str) -> BackendError:
    """The error for a node that no region can compute."""
    return BackendError(f"region: node '{node.name}' ({node.target}) {why}.")


def arguments(node: fx.Node) -> Arguments:
    """The arguments of an aten call by name, with the schema's defaults."""
    assert isinstance(node.target, torch._ops.OpOverload)
    given: Arguments = dict(node.kwargs)
    for position, parameter in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            given[parameter.name] = node.args[position]
        elif parameter.name not in given:
            given[parameter.name] = parameter.default_value
    return given


def shape_of(node: fx.Node) -> tuple[int | None, ...]:
    """Sizes; None for the row axis."""
    sizes = node.meta["val"].shape
    return tuple(None if isinstance(size, torch.SymInt) else int(size) for size in sizes)


def broadcast(indices: Indices, shape: Sequence[int | None]) -> Indices:
    """The element of an operand of `shape` that belongs to `indices` of the result."""
    own = indices[len(indices) - len(shape) :]
    return [ZERO if size == 1 else index for index, size in zip(own, shape, strict=True)]


def _axis(node: fx.Node, dim: int) -> int:
    return dim % max(1, len(shape_of(node)))


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _reshape(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    before, after = shape_of(_source(node)), shape_of(node)
    if None not in before and None not in after:
        return unflatten(flatten(indices, _sizes(after)), _sizes(before))
    if before.count(None) != 1 or after.count(None) != 1:
        raise refuse(node, f"reshapes {before} to {after}: each side needs one row axis")
    old, new = before.index(None), after.index(None)
    left_before, left_after = math.prod(_sizes(before[:old])), math.prod(_sizes(after[:new]))
    if left_before == 1 and left_after == 1:
        position = flatten(indices[new:], [1, *_sizes(after[new + 1 :])])
        return [ZERO] * old + unflatten(position, [1, *_sizes(before[old + 1 :])])
    right_before = math.prod(_sizes(before[old + 1 :]))
    right_after = math.prod(_sizes(after[new + 1 :]))
    if left_before != left_after or right_before != right_after:
        raise refuse(node, f"reshapes {before} to {after}, across the row axis")
    left = unflatten(flatten(indices[:new], _sizes(after[:new])), _sizes(before[:old]))
    right = flatten(indices[new + 1 :], _sizes(after[new + 1 :]))
    return [*left, indices[new], *unflatten(right, _sizes(before[old + 1 :]))]


def _sizes(shape: Sequence[int | None]) -> list[int]:
    return [0 if size is None else size for size in shape]


def _permute(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    order = [_axis(node, dim) for dim in given["dims"]]
    return [indices[order.index(axis)] for axis in range(len(order))]


def _transpose(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    a, b = _axis(node, given.get("dim0", 0)), _axis(node, given.get("dim1", 1))
    moved = list(indices)
    moved[a], moved[b] = moved[b], moved[a]
    return moved


def _t(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    return indices[::-1]


def _unsqueeze(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    axis = _axis(node, given["dim"])
    return [*indices[:axis], *indices[axis + 1 :]]


def _squeeze(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    before = shape_of(_source(node))
    dims = given["dim"] if isinstance(given["dim"], (list, tuple)) else [given["dim"]]
    gone = {dim % len(before) for dim in dims if before[dim] == 1}
    left = iter(indices)
    return [ZERO if axis in gone else next(left) for axis in range(len(before))]


def _expand(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    return broadcast(indices, shape_of(_source(node)))


def _slice(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    axis = _axis(node, given["dim"])
    size = shape_of(_source(node))[axis]
    start, step = given["start"] or 0, given["step"]
    if size is None:
        if start != 0 or step != 1 or shape_of(node)[axis] is not None:
            raise refuse(node, "takes some of the rows")
        return indices
    start = min(max(start + size if start < 0 else start, 0), size)
    moved = list(indices)
    moved[axis] = moved[axis] * step + start
    return moved


def _select(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    axis = given["dim"] % (len(indices) + 1)
    size = shape_of(_source(node))[axis]
    if size is None:
        raise refuse(node, "takes one of the rows")
    chosen = Index(frozenset(), given["index"] % size)
    return [*indices[:axis], chosen, *indices[axis:]]


def _flip(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    moved = list(indices)
    for dim in given["dims"]:
        size = shape_of(node)[_axis(node, dim)]
        if size is None:
            raise refuse(node, "reverses the rows")
        moved[_axis(node, dim)] = moved[_axis(node, dim)] * -1 + (size - 1)
    return moved


def _repeat(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    before = shape_of(_source(node))
    own = indices[len(indices) - len(before) :]
    return [
        index if size is None else index % size for index, size in zip(own, before, strict=True)
    ]


def _repeat_interleave(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    if given["dim"] is None:
        raise refuse(node, "repeats a flattened value")
    axis = _axis(node, given["dim"])
    moved = list(indices)
    moved[axis] = moved[axis] // int(given["repeats"])
    return moved


def _same(node: fx.Node, given: Arguments, indices: Indices) -> Indices:
    return indices


MOVES: dict[str, Callable[[fx.Node, Arguments, Indices], Indices]] = {
    "reshape.default": _reshape,
    "flatten.using_ints": _reshape,
    "permute.default": _permute,
    "transpose.int": _transpose,
    "t.default": _t,
    "unsqueeze.default": _unsqueeze,
    "squeeze.dim": _squeeze,
    "squeeze.dims": _squeeze,
    "expand.default": _expand,
    "slice.Tensor": _slice,
    "select.int": _select,
    "clone.default": _same,
    "flip.default": _flip,
    "repeat.default": _repeat,
    "repeat_interleave.self_int": _repeat_interleave,
}


@dataclass(frozen=True)
class Piece:
    """A part of a concatenation: positions [first, first + size) along the axis are `source`.

    `source` None is filled with a constant. `stacked`: the axis does not exist in the source.
    """

    source: fx.Node | None
    first: int
    size: int
    stacked: bool = False


def pieces(node: fx.Node) -> tuple[int, list[Piece], float] | None:
    """(axis, pieces, filler) of a cat, a stack, or a pad of one axis; None for other ops."""
    given, name = arguments(node), str(node.target).removeprefix("aten.")
    found: list[Piece] = []
    if name in ("cat.default", "stack.default"):
        axis, stacked = _axis(node, given["dim"]), name == "stack.default"
        for source in given["tensors"]:
            size = 1 if stacked else shape_of(source)[axis]
            if size is None:
                raise refuse(node, "puts rows behind rows")
            first = found[-1].first + found[-1].size if found else 0
            found.append(Piece(source, first, size, stacked))
        return axis, found, 0.0
    if name != "constant_pad_nd.default":
        return None
    pads = [(a, b) for a, b in zip(given["pad"][::2], given["pad"][1::2], strict=True)]
    used = [i for i, (a, b) in enumerate(pads) if (a, b) != (0, 0)]
    if len(used) > 1:
        raise refuse(node, f"pads several axes: {given['pad']}")
    axis = node.meta["val"].dim() - 1 - (used[0] if used else 0)
    size = shape_of(_source(node))[axis]
    before, behind = pads[used[0]] if used else (0, 0)
    if size is None or before < 0 or behind < 0:
        raise refuse(node, "pads or cuts rows")
    parts = [Piece(None, 0, before), Piece(_source(node), before, size)]
    parts.append(Piece(None, before + size, behind))
    return axis, [part for part in parts if part.size], float(given["value"] or 0)
