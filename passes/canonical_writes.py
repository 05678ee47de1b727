"""Canonical spellings of values that are written part by part: concatenations of the parts.

Code that fills a new tensor in place is traced as a chain of copies and scatters. Each rule returns
the new node, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor
from graphwright.passes.canonical_layout import same_value
from graphwright.passes.drop_no_ops import same_kind

__all__ = ["WRITE_RULES"]

aten = torch.ops.aten


def _copy(program: Program, node: fx.Node) -> fx.Node | None:
    """copy(target, x): x in the shape and dtype of the target, whose values do not matter."""
    source: Any = node.args[1]
    wanted: Any = node.meta["val"]
    if not isinstance(source, fx.Node):
        return None
    if source.meta["val"].dtype != wanted.dtype:
        source = program.call(node, aten._to_copy.default, source, dtype=wanted.dtype)
    if same_kind(source.meta["val"], wanted):
        return source  # type: ignore[no-any-return]
    sizes = _broadcast(source.meta["val"], wanted)
    return None if sizes is None else same_value(program, node, aten.expand.default, source, sizes)


def _broadcast(source: torch.Tensor, wanted: torch.Tensor) -> list[int] | None:
    """Sizes for expand, -1 where a size stays; None when a symbolic one would be new."""
    added = wanted.dim() - source.dim()
    sizes = []
    for i, size in enumerate(wanted.shape):
        if i >= added and size_of(source.shape[i - added]) == size_of(size):
            sizes.append(-1)
        elif isinstance(size, int):
            sizes.append(size)
        else:
            return None
    return sizes


def _slice_scatter(program: Program, node: fx.Node) -> fx.Node | None:
    """x with part [start:end] replaced  →  cat(x[:start], part, x[end:]); one with a step chooses
    from x and the part."""
    given: list[Any] = list(node.args)
    given += [0, None, None, 1][len(given) - 2 :]
    base, part, dim, start, end, step = given
    value = base.meta["val"]
    dim = int(dim) % value.dim()
    size = size_of(value.shape[dim])
    if part.meta["val"].dtype != value.dtype:
        return None
    if same_kind(part.meta["val"], value) and start in (0, None) and step == 1:
        return part  # type: ignore[no-any-return]
    if not isinstance(size, int):
        return None
    bounds: list[Any] = [default if n is None else n for n, default in ((start, 0), (end, size))]
    if not all(isinstance(bound, int) for bound in (*bounds, step)):
        return None
    first, last = (min(max(n + size if n < 0 else n, 0), size) for n in bounds)
    if first >= last:
        return base  # type: ignore[no-any-return]
    if step != 1:
        return _with_entries(program, node, base, part, dim, range(first, last, step))
    return _with_part(program, node, base, part, dim, (first, last))


def _with_entries(
    program: Program, node: fx.Node, base: fx.Node, part: fx.Node, dim: int, places: range
) -> fx.Node:
    """x with the entries at `places` replaced  →  cat(x, part), entry by entry."""
    size = int(base.meta["val"].shape[dim])
    chosen = torch.arange(size)
    chosen[torch.tensor(places)] = size + torch.arange(len(places))
    index = program.add_weight("chosen_entries", ConstantTensor.of(chosen))
    both = program.call(node, aten.cat.default, [base, part], dim)
    return same_value(program, node, aten.index_select.default, both, dim, index)


def _select_scatter(program: Program, node: fx.Node) -> fx.Node | None:
    """x with entry `index` replaced  →  cat(x[:index], part, x[index + 1:])."""
    given: list[Any] = list(node.args)
    base, part, dim, index = given
    value = base.meta["val"]
    dim = int(dim) % value.dim()
    size = size_of(value.shape[dim])
    if not isinstance(size, int) or not isinstance(index, int):
        return None
    if part.meta["val"].dtype != value.dtype:
        return None
    entry = program.call(node, aten.unsqueeze.default, part, dim)
    return _with_part(program, node, base, entry, dim, (index % size, index % size + 1))


def _with_part(
    program: Program,
    node: fx.Node,
    base: fx.Node,
    part: fx.Node,
    dim: int,
    bounds: tuple[int, int],
) -> fx.Node:
    size = int(base.meta["val"].shape[dim])
    parts = [part]
    if bounds[0] > 0:
        parts.insert(0, program.call(node, aten.slice.Tensor, base, dim, 0, bounds[0]))
    if bounds[1] < size:
        parts.append(program.call(node, aten.slice.Tensor, base, dim, bounds[1], size))
    if len(parts) == 1:
        return part
    return same_value(program, node, aten.cat.default, parts, dim)


def _slice_of_cat(program: Program, node: fx.Node) -> fx.Node | None:
    """cat(a, b, c)[start:end]  →  the parts that it covers, when it cuts none of them."""
    given: list[Any] = list(node.args)
    given += [0, 0, None, 1][len(given) - 1 :]
    source, dim, start, end, step = given
    if not isinstance(source, fx.Node) or source.target is not aten.cat.default or step != 1:
        return None
    parts: Any = source.args[0]
    rank = node.meta["val"].dim()
    along: Any = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)
    if int(along) % rank != dim or not isinstance(start, int) or not isinstance(end, int):
        return None
    covered, place = [], 0
    for part in parts:
        size = size_of(part.meta["val"].shape[dim])
        if not isinstance(size, int):
            return None
        if start <= place and place + size <= end:
            covered.append(part)
        elif place < end and start < place + size:
            return None
        place += size
    if len(covered) == 1:
        return covered[0]  # type: ignore[no-any-return]
    return same_value(program, node, aten.cat.default, covered, dim) if covered else None


WRITE_RULES: dict[Any, Callable[[Program, fx.Node], fx.Node | None]] = {
    aten.copy.default: _copy,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.slice.Tensor: _slice_of_cat,
}
