"""Rows and row views: how a value of the graph lies in memory.

A step works on T tokens (or on R sampled rows), so almost every value is a table: one row per
token. A *row view* is a value whose rows are contiguous runs inside the rows of another value: a
slice of a merged projection, a reshape within the row. Row views cost nothing: kernels take a row
stride.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

__all__ = ["VIEW_OPS", "RowView", "is_view", "row_axis", "row_size", "row_view", "size_of"]

aten = torch.ops.aten
VIEW_OPS = frozenset(
    {
        aten.reshape.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.slice.Tensor,
        aten.select.int,
    }
)


@dataclass(frozen=True)
class RowView:
    """Row r of the value is base[r * row_stride + offset : … + row_size], counted in elements."""

    base: fx.Node
    offset: int
    row_stride: int
    row_size: int

    @property
    def dense(self) -> bool:
        """Do the rows follow each other without gaps?"""
        return self.row_stride == self.row_size


def size_of(size: Any) -> Any:
    """An int as it is, a symbolic size as its expression: comparing those adds no guards."""
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


def row_axis(value: Any) -> int | None:
    """The axis that counts rows: the only symbolic one, with nothing but ones before it.

    None when the value is no tensor or is not laid out in rows.
    """
    if not isinstance(value, torch.Tensor):
        return None
    shape = value.shape
    symbolic = [i for i, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    if len(symbolic) != 1 or any(size != 1 for size in shape[: symbolic[0]]):
        return None
    return symbolic[0]


def row_size(value: torch.Tensor) -> int:
    """Elements in one row. `value` must have a row axis."""
    axis = row_axis(value)
    assert axis is not None
    return _elements(value, axis)


def _elements(value: torch.Tensor, axis: int) -> int:
    return math.prod([int(size) for size in value.shape[axis + 1 :]])


def is_view(node: fx.Node) -> bool:
    """Is `node` a row view of its first argument (so that no code runs for it)?"""
    if node.op != "call_function" or node.target not in VIEW_OPS:
        return False
    source, value = node.args[0], node.meta["val"]
    assert isinstance(source, fx.Node)
    before = source.meta["val"]
    axis, source_axis = row_axis(value), row_axis(before)
    if axis is None or source_axis is None:
        return False
    if value.shape[axis].node.expr != before.shape[source_axis].node.expr:
        return False
    if node.target in (aten.slice.Tensor, aten.select.int):
        return _cut(node) is not None
    return True


def _cut(node: fx.Node) -> int | None:
    """Offset, in elements of the source's row, of a slice or select that keeps rows contiguous."""
    source: Any = node.args[0]
    before = source.meta["val"]
    axis = row_axis(before)
    assert axis is not None
    dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
    dim %= before.dim()
    if dim <= axis or any(size != 1 for size in before.shape[axis + 1 : dim]):
        return None
    inner = math.prod(int(size) for size in before.shape[dim + 1 :])
    size = int(before.shape[dim])
    start: Any = node.args[2] if len(node.args) > 2 else 0
    if node.target is aten.slice.Tensor and len(node.args) > 4 and node.args[4] != 1:
        return None
    if not isinstance(start, (int, type(None))):
        return None
    start = start or 0
    start = start + size if start < 0 else min(start, size)
    return int(start) * inner


def row_view(node: fx.Node) -> RowView | None:
    """Where the rows of `node` lie: itself when it computes something, else inside what it views.

    None when the value has no row axis.
    """
    value: Any = node.meta.get("val")
    axis = row_axis(value)
    if axis is None:
        return None
    size = _elements(value, axis)
    if not is_view(node):
        return RowView(node, 0, size, size)
    source: Any = node.args[0]
    inner = row_view(source)
    assert inner is not None
    cut = _cut(node) if node.target in (aten.slice.Tensor, aten.select.int) else 0
    assert cut is not None
    return RowView(inner.base, inner.offset + cut, inner.row_stride, size)
