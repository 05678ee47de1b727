"""Operands that are the same for several rows, as the angles of a rotation for a batch: spread out.

x[B, heads, S, D] * cos[1, 1, S, D]  →  x * expand(cos, [B, 1, S, D]).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import fx

from graphwright.frontend.row_parts.forms import Form, NoFormError, form_after
from graphwright.ir.layout import size_of
from graphwright.ir.levels import POINTWISE

__all__ = ["spread_operands"]

aten = torch.ops.aten


def spread_operands(graph: fx.Graph, forms: Mapping[fx.Node, Form], constants: Set[fx.Node]) -> int:
    """Inserts what is missing for elementwise operators next to those that have a form, and returns
    how often."""
    count = 0
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
            if operand is not leading and operand not in constants:
                count += _spread(graph, node, operand, leading, form)
    return count


def _is_pointwise(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return (
        str(node.target).removeprefix("aten.") in POINTWISE
        and isinstance(value, torch.Tensor)
        and value.dtype.is_floating_point
    )


def _spread(graph: fx.Graph, node: fx.Node, operand: fx.Node, leading: fx.Node, form: Form) -> bool:
    value, small = node.meta["val"], operand.meta.get("val")
    if not isinstance(small, torch.Tensor) or not small.dtype.is_floating_point:
        return False
    missing = value.dim() - small.dim()
    sizes: list[Any] = [1] * missing + list(small.shape)
    rows = [dim for dim in form.lead if size_of(sizes[dim]) != size_of(value.shape[dim])]
    if not rows or any(size_of(sizes[dim]) != 1 for dim in rows):
        return False
    shift = value.dim() - leading.meta["val"].dim()
    wanted: list[Any] = list(sizes)
    with graph.inserting_before(node):
        for dim in range(value.dim()):
            source, place, fake = (leading, dim - shift, value.shape[dim]) if dim in rows else (
                operand, dim - missing, sizes[dim])  # fmt: skip
            if isinstance(fake, int):
                wanted[dim] = fake
            else:
                wanted[dim] = graph.call_function(aten.sym_size.int, (source, place))
                wanted[dim].meta["val"] = fake
            sizes[dim] = fake
        spread = graph.call_function(aten.expand.default, (operand, wanted))
    with small.fake_mode:  # type: ignore[attr-defined]
        spread.meta["val"] = small.expand(sizes)
    node.replace_input_with(operand, spread)
    return True
