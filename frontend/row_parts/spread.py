"""Operands that are the same for several rows, as the angles of a rotation for a batch: spread out.

x[B, heads, S, D] * cos[1, 1, S, D]  →  x * expand(cos, [B, 1, S, D]).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import fx

from graphwright.frontend.row_parts.form_rules import (
    form_after,
)
from graphwright.frontend.row_parts.forms import (
    Form,
    NoFormError,
)
from graphwright.ir.layout import size_of
from graphwright.ir.levels import POINTWISE

__all__ = ["spread_operands"]

aten = torch.ops.aten


def spread_operands(graph: fx.Graph, forms: Mapping[fx.Node, Form], constants: Set[fx.Node]) -> int:
    """Inserts what is missing for elementwise operators next to those that have a form, and returns
    how often."""
    count = 0
    made: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node in forms or node in constants or not _is_pointwise(node):
            continue
        leading = next((s for s in node.all_input_nodes if s in forms), None)
        if leading is None:
            continue
        try:
            form = form_after(node, leading, forms[leading])
        except NoFormError:
            continue
        for operand in node.all_input_nodes:
            if operand is leading or operand in constants:
                continue
            sizes = _spread_sizes(node, operand, form)
            if sizes is not None:
                key = (operand, *map(size_of, sizes))
                if key not in made:
                    made[key] = _expand(graph, node, operand, sizes, leading)
                node.replace_input_with(operand, made[key])
                count += 1
    return count


def _is_pointwise(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return (
        str(node.target).removeprefix("aten.") in POINTWISE
        and isinstance(value, torch.Tensor)
        and value.dtype.is_floating_point
    )


def _spread_sizes(node: fx.Node, operand: fx.Node, form: Form) -> list[Any] | None:
    """The sizes of the operand with a row for each row of the result; None: it has them, or some
    other number of rows."""
    value, small = node.meta["val"], operand.meta.get("val")
    if not isinstance(small, torch.Tensor) or not small.dtype.is_floating_point:
        return None
    missing = value.dim() - small.dim()
    sizes: list[Any] = [1] * missing + list(small.shape)
    lacking = [
        dim
        for dim in form.lead
        if dim < missing or size_of(sizes[dim]) != size_of(value.shape[dim])
    ]
    if not lacking or any(size_of(sizes[dim]) != 1 for dim in lacking):
        return None
    for dim in lacking:
        sizes[dim] = value.shape[dim]
    return sizes


def _expand(
    graph: fx.Graph, node: fx.Node, operand: fx.Node, sizes: list[Any], leading: fx.Node
) -> fx.Node:
    value, small = node.meta["val"], operand.meta["val"]
    missing, shift = value.dim() - small.dim(), value.dim() - leading.meta["val"].dim()
    wanted = list(sizes)
    with graph.inserting_before(node):
        for dim, size in enumerate(sizes):
            if isinstance(size, int):
                continue
            own = dim >= missing and size_of(small.shape[dim - missing]) == size_of(size)
            source, place = (operand, dim - missing) if own else (leading, dim - shift)
            wanted[dim] = _number(graph, size, source, place)
        made = graph.call_function(aten.expand.default, (operand, wanted))
    with small.fake_mode:
        made.meta["val"] = small.expand(sizes)
    return made


def _number(graph: fx.Graph, size: Any, source: fx.Node, dim: int) -> fx.Node:
    """A node that is `size`: an argument of the graph, where there is one, so that nobody waits."""
    for placeholder in graph.find_nodes(op="placeholder"):
        known = placeholder.meta.get("val")
        if isinstance(known, torch.SymInt) and size_of(known) == size_of(size):
            found: fx.Node = placeholder
            return found
    number = graph.call_function(aten.sym_size.int, (source, dim))
    number.meta["val"] = size
    return number
