"""A value as one row a token, [T, C], and such rows in another value's layout."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.ir.program import Program

__all__ = ["from_rows", "to_rows"]

aten = torch.ops.aten


def to_rows(program: Program, before: fx.Node, node: fx.Node, axis: int) -> fx.Node:
    """`node`, whose tokens lie along `axis`, as [T, C], the other axes in their order; made in
    front of `before`."""
    rank = node.meta["val"].dim()
    axis %= rank
    if axis:
        order = [axis, *(i for i in range(rank) if i != axis)]
        node = program.call(before, aten.permute.default, node, order)
    sizes = [int(size) for size in node.meta["val"].shape[1:]]
    count = torch.Size(sizes).numel()
    return node if sizes == [count] else program.call(
        before, aten.reshape.default, node, [-1, count]
    )  # fmt: skip


def from_rows(
    program: Program, before: fx.Node, y: fx.Node, like: torch.Tensor, axis: int
) -> fx.Node:
    """y [T, C] in the layout of `like`, whose tokens lie along `axis`."""
    axis %= like.dim()
    sizes = [int(size) for i, size in enumerate(like.shape) if i != axis]
    node = y
    if len(sizes) != 1:
        node = program.call(before, aten.reshape.default, node, [-1, *sizes])
    if not axis:
        return node
    order = [*range(1, axis + 1), 0, *range(axis + 1, like.dim())]
    return program.call(before, aten.permute.default, node, order)
