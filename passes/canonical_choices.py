"""Canonical spellings of choices along the last axis: the largest, and places given by index.

Routers of experts are written with these. An index that a computed value is read or written by
becomes a comparison with the places of that short axis, which is plain pointwise work.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor
from graphwright.passes.canonical_numbers import fill_of

__all__ = ["CHOICE_RULES"]

aten, gw = torch.ops.aten, torch.ops.gw
_MOST_PLACES = 1024  # of the axis that is compared with
_MOST_WRITTEN = 64  # places that one scatter writes


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _is_last(value: torch.Tensor, dim: Any) -> bool:
    """Is `dim` the last axis, of a known size, of a value with more axes than that?"""
    if not isinstance(dim, int) or value.dim() < 2 or not isinstance(value.shape[-1], int):
        return False
    return dim % value.dim() == value.dim() - 1 and value.shape[-1] <= _MOST_PLACES


def _largest(node: Any) -> tuple[int, bool, bool] | None:
    """How many of the last axis `node` picks, whether the largest, and whether it keeps the axis;
    None when it is no such choice."""
    if not isinstance(node, fx.Node) or node.target not in _CHOICES:
        return None
    place, default = _CHOICES[node.target]
    x: Any = node.args[0]
    value = x.meta["val"]
    if not value.dtype.is_floating_point or not _is_last(value, _argument(node, place, "dim", -1)):
        return None
    if node.target is aten.topk.default:
        k = _argument(node, 1, "k")
        return (k, _argument(node, 3, "largest", True), True) if isinstance(k, int) else None
    if node.target in (aten.sort.default, aten.sort.stable):
        return int(value.shape[-1]), _argument(node, place + 1, "descending", False), True
    return 1, default, _argument(node, 2, "keepdim", False)


_CHOICES: dict[Any, tuple[int, bool]] = {  # the place of `dim`, and whether the largest is wanted
    aten.topk.default: (2, True),
    aten.sort.default: (1, False),
    aten.sort.stable: (2, False),
    aten.max.dim: (1, True),
    aten.min.dim: (1, False),
    aten.argmax.default: (1, True),
    aten.argmin.default: (1, False),
}


def _part(program: Program, node: fx.Node) -> fx.Node | None:
    """The values or the indices of topk, sort, max and min  →  those of gw.top_k."""
    choice, number = node.args
    found = _largest(choice)
    if found is None or not isinstance(choice, fx.Node):
        return None
    return _chosen(program, node, choice.args[0], found, int(number))  # type: ignore[arg-type]


def _index_of_largest(program: Program, node: fx.Node) -> fx.Node | None:
    """argmax and argmin  →  the indices of gw.top_k."""
    found = _largest(node)
    return None if found is None else _chosen(program, node, node.args[0], found, 1)


def _chosen(
    program: Program, node: fx.Node, x: Any, found: tuple[int, bool, bool], number: int
) -> fx.Node:
    """Output `number` of gw.top_k; the smallest of x are the largest of -x."""
    k, largest, keeps_axis = found
    if not largest:
        x = program.call(node, aten.neg.default, x)
    pair = program.call(node, gw.top_k.default, x, k=k)
    part = program.call(node, operator.getitem, pair, number)
    if not largest and number == 0:
        part = program.call(node, aten.neg.default, part)
    return part if keeps_axis else program.call(node, aten.squeeze.dim, part, -1)


def _gather(program: Program, node: fx.Node) -> fx.Node | None:
    """gather(x, -1, index)  →  Σ over the places of x where a place is the index, else 0.

    Reading x by its own gw.top_k gives the values of that, reading a constant whose entries are all
    equal that entry.
    """
    x, dim, index = (_argument(node, i, name) for i, name in enumerate(("self", "dim", "index")))
    value, weight = x.meta["val"], program.weight_of(x)
    if isinstance(weight, ConstantTensor) and weight.tensor.unique().numel() == 1:
        entry = weight.tensor.flatten()[0].item()
        return program.call(node, aten.full_like.default, index, entry, dtype=value.dtype)
    if not _is_last(value, dim) or not _same_rows(value, index.meta["val"]):
        return None
    pair = index.args[0] if index.target is operator.getitem else None
    if isinstance(pair, fx.Node) and pair.target is gw.top_k.default and pair.args[0] is x:
        return program.call(node, operator.getitem, pair, 0)
    if value.dtype not in (torch.float32, torch.int64):
        return None
    here = _is_place(program, node, program.call(node, aten.unsqueeze.default, index, -1), value)
    row = program.call(node, aten.unsqueeze.default, x, -2)
    chosen = program.call(node, aten.where.ScalarOther, here, row, 0)
    return program.call(node, aten.sum.dim_IntList, chosen, [-1])


def _scatter(program: Program, node: fx.Node) -> fx.Node | None:
    """scatter(x, -1, index, source)  →  where(a place is the index, source, x), index by index."""
    base, dim, index, source = node.args[:4]
    assert isinstance(base, fx.Node) and isinstance(index, fx.Node)
    value, places = base.meta["val"], index.meta["val"]
    if not _is_last(value, dim) or not _same_rows(value, places):
        return None
    count = places.shape[-1]
    if not isinstance(count, int) or count > _MOST_WRITTEN or node.kwargs:
        return None
    hits = [
        _is_place(program, node, _column(program, node, index, number), value)
        for number in range(count)
    ]
    if not isinstance(source, fx.Node):
        hit = reduce(lambda one, two: program.call(node, aten.logical_or.default, one, two), hits)
        return _where(program, node, hit, source, base)
    if not _same_rows(value, source.meta["val"]) or source.meta["val"].dtype != value.dtype:
        return None
    result = base
    for number, hit in enumerate(hits):
        written = _column(program, node, source, number)
        if node.target is aten.scatter_add.default:
            added = program.call(node, aten.where.ScalarOther, hit, written, 0)
            result = program.call(node, aten.add.Tensor, result, added)
        else:
            result = _where(program, node, hit, written, result)
    return result


def _one_hot(program: Program, node: fx.Node) -> fx.Node | None:
    """one_hot(index, n)  →  index == the places 0..n-1, as integers."""
    index, classes = node.args[0], node.args[1] if len(node.args) > 1 else -1
    if not isinstance(classes, int) or not 0 < classes <= _MOST_PLACES:
        return None
    wide = program.call(node, aten.unsqueeze.default, index, -1)
    hit = program.call(node, aten.eq.Tensor, wide, _places(program, classes))
    return program.call(node, aten._to_copy.default, hit, dtype=torch.int64)


def _same_rows(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Are two shapes equal but for the last axis?"""
    return [size_of(s) for s in one.shape[:-1]] == [size_of(s) for s in two.shape[:-1]]


def _column(program: Program, node: fx.Node, x: fx.Node, number: int) -> fx.Node:
    return program.call(node, aten.slice.Tensor, x, -1, number, number + 1)


def _is_place(program: Program, node: fx.Node, index: fx.Node, value: torch.Tensor) -> fx.Node:
    """index [..., 1] == the places of the last axis of `value`."""
    return program.call(node, aten.eq.Tensor, index, _places(program, int(value.shape[-1])))


def _places(program: Program, size: int) -> fx.Node:
    """The weight 0, 1, … size - 1; one for each size."""
    name = f"places_{size}"
    for node in program.graph.nodes:
        if node.op == "get_attr" and node.target == name:
            found: fx.Node = node
            return found
    return program.add_weight(name, ConstantTensor.of(torch.arange(size), name))


def _where(program: Program, node: fx.Node, hit: fx.Node, one: Any, other: fx.Node) -> fx.Node:
    """where(hit, one, other), a constant `other` being written as a number."""
    dtype = other.meta["val"].dtype
    number = fill_of(other)
    if dtype.is_floating_point:
        one, number = (float(n) if isinstance(n, int) else n for n in (one, number))
    if isinstance(one, fx.Node):
        if number is None:
            return program.call(node, aten.where.self, hit, one, other)
        return program.call(node, aten.where.ScalarOther, hit, one, number)
    if number is None:
        return program.call(node, aten.where.ScalarSelf, hit, one, other)
    result = program.call(node, aten.where.Scalar, hit, one, number)
    if result.meta["val"].dtype == dtype:
        return result
    return program.call(node, aten._to_copy.default, result, dtype=dtype)


CHOICE_RULES: dict[Any, Callable[[Program, fx.Node], fx.Node | None]] = {
    operator.getitem: _part,
    aten.argmax.default: _index_of_largest,
    aten.argmin.default: _index_of_largest,
    aten.gather.default: _gather,
    aten.scatter.value: _scatter,
    aten.scatter.src: _scatter,
    aten.scatter_add.default: _scatter,
    aten.one_hot.default: _one_hot,
}
