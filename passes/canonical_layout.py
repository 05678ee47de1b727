"""Canonical spellings of ops that only move elements. Each rule returns the new node, or None."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor
from graphwright.passes.drop_no_ops import same_kind

__all__ = ["LAYOUT_RULES", "canonical_sizes", "reshape_like", "same_value"]

aten = torch.ops.aten
_RESHAPES = frozenset({aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim,
                       aten.squeeze.dims, aten.squeeze.default})  # fmt: skip
_EXTREMA: dict[Any, Any] = {
    aten.max.dim: aten.amax.default,
    aten.min.dim: aten.amin.default,
}
_MOST_UNFOLDED = 64  # elements of a window, each of which becomes a slice
_LAST = 2**63 - 1  # torch's way to say "to the end"


def same_value(
    program: Program, old: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any
) -> fx.Node:
    """A call of `target` in front of `old` that has the same value, so also its meta value."""
    with program.graph.inserting_before(old):
        new = program.graph.call_function(target, args, kwargs)
    new.meta["val"] = old.meta["val"]
    return new


def canonical_sizes(value: torch.Tensor) -> list[Any] | None:
    """Sizes for reshape: numbers, and -1 for the symbolic one; None when there are several."""
    sizes = [size_of(size) for size in value.shape]
    symbolic = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    if len(symbolic) > 1:
        return None
    return [-1 if i in symbolic else size for i, size in enumerate(sizes)]


def reshape_like(program: Program, before: fx.Node, source: fx.Node, like: fx.Node) -> fx.Node:
    """`source` reshaped to the shape of `like`, which has at most one symbolic size."""
    sizes = canonical_sizes(like.meta["val"])
    assert sizes is not None
    with program.graph.inserting_before(before):
        new = program.graph.call_function(aten.reshape.default, (source, sizes))
    new.meta["val"] = like.meta["val"]
    return new


def _reshape(program: Program, node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0]
    while source.target in _RESHAPES:
        source = source.args[0]
    sizes = canonical_sizes(node.meta["val"])
    if sizes is None:
        return _reshape_matrix(program, node)
    if same_kind(source.meta["val"], node.meta["val"]):
        return source  # type: ignore[no-any-return]
    if node.target is aten.reshape.default and node.args == (source, sizes):
        return None
    return same_value(program, node, aten.reshape.default, source, sizes)


def _reshape_matrix(program: Program, node: fx.Node) -> fx.Node | None:
    """Several symbolic sizes: the last one that is the token count becomes -1."""
    sizes: Any = node.args[1]
    given = [i for i, size in enumerate(sizes) if isinstance(size, fx.Node)]
    if node.target is not aten.reshape.default or -1 in sizes or not given:
        return None
    sizes = [-1 if i == given[-1] else size for i, size in enumerate(sizes)]
    return same_value(program, node, aten.reshape.default, node.args[0], sizes)


def _flatten(program: Program, node: fx.Node) -> fx.Node | None:
    if canonical_sizes(node.meta["val"]) is None:
        return None
    return reshape_like(program, node, node.args[0], node)  # type: ignore[arg-type]


def _unsqueeze(program: Program, node: fx.Node) -> fx.Node | None:
    """A reshape and an unsqueeze are one reshape; an unsqueeze alone stays."""
    source: Any = node.args[0]
    if source.target is aten.reshape.default and canonical_sizes(node.meta["val"]) is not None:
        return reshape_like(program, node, source, node)
    dim: Any = node.args[1]
    if dim < 0:
        return same_value(program, node, node.target, source, dim + node.meta["val"].dim())  # type: ignore[arg-type]
    return None


def _squeeze(program: Program, node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0]
    if node.target is aten.squeeze.dim and source.target is not aten.reshape.default:
        dim: Any = node.args[1]
        if source.target is aten.unsqueeze.default and source.args[1] == dim:
            return source.args[0]  # type: ignore[no-any-return]
        if dim >= 0:
            return None
        return same_value(program, node, aten.squeeze.dim, source, dim + source.meta["val"].dim())
    if canonical_sizes(node.meta["val"]) is None:
        return None
    return reshape_like(program, node, source, node)


def _permute(program: Program, node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0]
    rank = source.meta["val"].dim()
    dims = list(range(rank))
    if node.target is aten.permute.default:
        dims = [int(dim) % rank for dim in node.args[1]]  # type: ignore[union-attr, arg-type]
    elif rank > 1:
        first, second = node.args[1:3] if node.target is aten.transpose.int else (0, 1)
        first, second = int(first) % rank, int(second) % rank  # type: ignore[arg-type]
        dims[first], dims[second] = dims[second], dims[first]
    if source.target is aten.permute.default:
        inner = [int(dim) % rank for dim in source.args[1]]
        source, dims = source.args[0], [inner[dim] for dim in dims]
    if dims == list(range(rank)):
        return source  # type: ignore[no-any-return]
    if node.args == (source, dims):
        return None
    return same_value(program, node, aten.permute.default, source, dims)


def _expand(program: Program, node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0]
    given: Any = list(node.args[1])  # type: ignore[arg-type]
    before = [size_of(size) for size in source.meta["val"].shape]
    after = [size_of(size) for size in node.meta["val"].shape]
    added = len(after) - len(before)
    sizes = [
        -1 if i >= added and before[i - added] == size else given[i]
        for i, size in enumerate(after)
    ]  # fmt: skip
    if sizes == given and node.target is aten.expand.default:
        return None
    return same_value(program, node, aten.expand.default, source, sizes)


def _slice(program: Program, node: fx.Node) -> fx.Node | None:
    """slice(x, dim, start, end[, step]): dim, start and end counted from the front, no defaults."""
    source: Any = node.args[0]
    given = [*node.args[1:], *([0, None, None, 1][len(node.args) - 1 :])]
    value = source.meta["val"]
    size = size_of(value.shape[given[0]])
    dim, start, end, step = given[0] % value.dim(), given[1] or 0, given[2], given[3]
    if isinstance(size, int):
        end = size if end is None else end
        if isinstance(start, int) and isinstance(end, int):
            start, end = (min(max(n + size if n < 0 else n, 0), size) for n in (start, end))
            end = max(start, end)
    elif isinstance(end, int) and end == _LAST:
        end = None
    if step == 1 and same_kind(value, node.meta["val"]):
        return source  # type: ignore[no-any-return]
    args = (source, dim, start, end) if step == 1 else (source, dim, start, end, step)
    return None if node.args == args else same_value(program, node, aten.slice.Tensor, *args)


def _unfold(program: Program, node: fx.Node) -> fx.Node | None:
    """unfold(x, dim, size, 1)  →  stack of `size` slices, each one element further."""
    source, dim, size, step = node.args
    assert isinstance(source, fx.Node) and isinstance(dim, int) and isinstance(size, int)
    if step != 1 or not 0 < size <= _MOST_UNFOLDED:
        return None
    dim %= source.meta["val"].dim()
    parts = [
        program.call(node, aten.slice.Tensor, source, dim, i, i + 1 - size or None)
        for i in range(size)
    ]
    return same_value(program, node, aten.stack.default, parts, source.meta["val"].dim())


def _select(program: Program, node: fx.Node) -> fx.Node | None:
    source, dim, index = node.args
    assert isinstance(source, fx.Node) and isinstance(dim, int)
    size = size_of(source.meta["val"].shape[dim])
    dim %= source.meta["val"].dim()
    if isinstance(size, int) and isinstance(index, int):
        index %= size
    if node.args == (source, dim, index):
        return None
    return same_value(program, node, aten.select.int, source, dim, index)


def _index(program: Program, node: fx.Node) -> fx.Node | None:
    """x[..., constants, ...] along one axis: a slice if they are consecutive, else index_select."""
    source, indices = node.args
    assert isinstance(source, fx.Node) and isinstance(indices, (list, tuple))
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    weight = program.weight_of(given[0][1]) if len(given) == 1 else None
    if not isinstance(weight, ConstantTensor) or len(weight.shape) != 1 or weight.shape[0] == 0:
        return None
    dim, index = given[0]
    size = size_of(source.meta["val"].shape[dim])
    if weight.dtype not in (torch.int64, torch.int32) or not isinstance(size, int):
        return None
    places = [place % size for place in weight.tensor.tolist()]
    start, end = places[0], places[0] + len(places)
    if places == list(range(start, end)):
        return same_value(program, node, aten.slice.Tensor, source, dim, start, end)
    if min(weight.tensor.tolist()) < 0:
        return None
    return same_value(program, node, aten.index_select.default, source, dim, index)


def _getitem(program: Program, node: fx.Node) -> fx.Node | None:
    """One part of a split is a slice, one part of an unbind is a select."""
    parts, number = node.args
    if not isinstance(parts, fx.Node) or not isinstance(number, int):
        return None
    source: Any = parts.args[0] if parts.args else None
    by_size = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
    if parts.target in _EXTREMA:
        return _extremum(program, node, parts, number)
    if parts.target not in (*by_size, aten.unbind.int):
        return None
    place = 1 if parts.target is aten.unbind.int else 2
    dim: Any = parts.args[place] if len(parts.args) > place else parts.kwargs.get("dim", 0)
    dim %= source.meta["val"].dim()
    if parts.target is aten.unbind.int:
        return same_value(program, node, aten.select.int, source, dim, number)
    sizes = [size_of(part.shape[dim]) for part in parts.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        return None
    start = sum(sizes[:number])
    return same_value(program, node, aten.slice.Tensor, source, dim, start, start + sizes[number])


def _extremum(program: Program, node: fx.Node, pair: fx.Node, number: int) -> fx.Node | None:
    """The values of max and min are amax and amin; their places are left."""
    if number != 0:
        return None
    given: list[Any] = [*pair.args, *[None, False][len(pair.args) - 1 :]]
    dim, keep = (pair.kwargs.get(n, v) for n, v in zip(("dim", "keepdim"), given[1:], strict=True))
    return same_value(program, node, _EXTREMA[pair.target], given[0], [dim], keep)


def _cat(program: Program, node: fx.Node) -> fx.Node | None:
    """Parts without elements are left out (a cache that was never filled is such a part)."""
    parts: Any = node.args[0]
    kept = [part for part in parts if 0 not in [size_of(s) for s in part.meta["val"].shape]]
    if len(kept) == 1 and same_kind(kept[0].meta["val"], node.meta["val"]):
        return kept[0]  # type: ignore[no-any-return]
    if len(kept) in (0, len(parts)):
        return None
    return same_value(program, node, aten.cat.default, kept, *node.args[1:])


def _sym_size(program: Program, node: fx.Node) -> fx.Node | None:
    """Every size that is the number of tokens is read off `tokens`."""
    tokens = program.placeholder("tokens")
    length = tokens.meta["val"].shape[0]
    if size_of(node.meta["val"]) != size_of(length) or node.args == (tokens, 0):
        return None
    last = [other for other in program.graph.nodes if other.op == "placeholder"][-1]
    with program.graph.inserting_after(last):
        new = program.graph.call_function(aten.sym_size.int, (tokens, 0))
    new.meta["val"] = length
    return new


def _pad(program: Program, node: fx.Node) -> fx.Node | None:
    """pad(x, sizes) with a constant  →  constant_pad_nd."""
    given: list[Any] = [*node.args, *("constant", None)[len(node.args) - 2 :]]
    mode, value = node.kwargs.get("mode", given[2]), node.kwargs.get("value", given[3])
    if mode != "constant":
        return None
    padded = (given[0], given[1], 0 if value is None else value)
    return same_value(program, node, aten.constant_pad_nd.default, *padded)


LAYOUT_RULES: dict[Any, Callable[[Program, fx.Node], fx.Node | None]] = {
    aten.reshape.default: _reshape,
    aten.flatten.using_ints: _flatten,
    aten.unflatten.int: _flatten,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.squeeze.default: _squeeze,
    aten.permute.default: _permute,
    aten.transpose.int: _permute,
    aten.t.default: _permute,
    aten.numpy_T.default: _permute,
    aten.expand.default: _expand,
    aten.broadcast_to.default: _expand,
    aten.slice.Tensor: _slice,
    aten.unfold.default: _unfold,
    aten.select.int: _select,
    aten.index.Tensor: _index,
    operator.getitem: _getitem,
    aten.cat.default: _cat,
    aten.sym_size.int: _sym_size,
    aten.pad.default: _pad,
}
