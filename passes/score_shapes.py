"""What stands between scores and their softmax: constants, and nodes that change nothing."""

from __future__ import annotations

import operator
from itertools import chain
from typing import Any

import torch
from torch import fx

from graphwright.ir import Program
from graphwright.ir.layout import size_of
from graphwright.passes.layout_chains import Atom

__all__ = [
    "CASTS", "PRODUCTS", "drops_last_column", "heads_among_queries", "is_nan", "is_row_maximum",
    "number_of", "over_tokens", "same_shape",
]  # fmt: skip

aten = torch.ops.aten
CASTS = {
    aten._to_copy.default, aten.clone.default, aten.alias.default, aten.contiguous.default,
    aten.dropout.default, aten.type_as.default,
}  # fmt: skip
PRODUCTS = {aten.matmul.default, aten.bmm.default}
_FILLS: dict[Any, int] = {  # where the value stands among the arguments
    aten.full.default: 1, aten.scalar_tensor.default: 0, aten.new_full.default: 2,
}  # fmt: skip


def number_of(program: Program, value: Any) -> float | None:
    """`value` as a constant: a number, or a one-element weight or full."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, fx.Node):
        return None
    weight = program.weight_of(value)
    if weight is not None and all(size == 1 for size in weight.shape):
        return float(weight.load().item())
    if value.target in _FILLS:
        number: Any = value.args[_FILLS[value.target]]
        shape: Any = value.meta["val"].shape
        if isinstance(number, (int, float)) and all(size_of(s) == 1 for s in shape):
            return float(number)
    return None


def is_nan(test: Any, node: fx.Node) -> bool:
    """Is it isnan(node), or node != node?"""
    if not isinstance(test, fx.Node):
        return False
    if test.target is aten.isnan.default:
        return test.args[0] is node
    return test.target is aten.ne.Tensor and test.args == (node, node)


def same_shape(left: Any, right: fx.Node) -> bool:
    shapes = [[size_of(s) for s in node.meta["val"].shape] for node in (left, right)]
    return shapes[0] == shapes[1]


def heads_among_queries(inner: list[list[Atom]], outer: list[list[Atom]]) -> list[int] | None:
    """Sizes of the heads that `inner` has in the axis of the queries, and `outer` before it.

    None when anything else differs: also the order of heads, which q, v and a bias share.
    """
    if min(len(inner), len(outer)) < 2 or [*chain(*inner)] != [*chain(*outer)]:
        return None
    rows, queries = inner[-2], outer[-2]
    heads = [atom.size for atom in rows[: max(len(rows) - len(queries), 0)]]
    kept = rows[len(heads) :] == queries and inner[-1] == outer[-1]
    return heads if kept and all(isinstance(size, int) for size in heads) else None


def is_row_maximum(node: fx.Node, scores: Any) -> bool:
    """Is it max(scores, -1, keepdim), which the softmax takes off anyway?"""
    maximum: Any = node
    if node.target is operator.getitem and node.args[1] == 0:
        maximum = node.args[0]
    if maximum.target not in (aten.max.dim, aten.amax.default) or maximum.args[0] is not scores:
        return False
    args = [*maximum.args, *(None, None)]
    dims = list(args[1]) if isinstance(args[1], (list, tuple)) else [args[1]]
    rank = maximum.args[0].meta["val"].dim()
    keeps = bool(args[2] or maximum.kwargs.get("keepdim"))
    return dims in ([-1], [rank - 1]) and keeps


def drops_last_column(node: fx.Node) -> bool:
    """x[..., :-1]"""
    if node.target is not aten.slice.Tensor:
        return False
    source: Any = node.args[0]
    before, after = source.meta["val"], node.meta["val"]
    dim, start = (*node.args[1:3], None)[:2]
    if dim not in (-1, after.dim() - 1) or start not in (None, 0):
        return False
    step_is_one = len(node.args) < 5 or node.args[4] == 1
    dropped = size_of(before.shape[-1]) - size_of(after.shape[-1])
    return bool(step_is_one and dropped == 1)


def over_tokens(node: Any) -> bool:
    """Has `node` a value for each pair of a query and a key, whatever their number?"""
    value = node.meta["val"] if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return False
    rows, columns = (size_of(size) for size in value.shape[-2:])
    return not isinstance(rows, int) and rows == columns
