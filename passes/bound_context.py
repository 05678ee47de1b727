"""How long a sequence may get before a position has no row in a table that it looks up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from graphwright.ir import Program
from graphwright.passes.content_free import content_free_nodes, evaluate

__all__ = ["bound_context"]

aten = torch.ops.aten
_LONGEST = 2**17  # looked at when the model does not say how long its context is


def bound_context(program: Program) -> str | None:
    """Shortens the program's context to what its tables of positions serve; the reason, if it did.

    Past that the model itself fails with an index out of range; compiled code would read on.
    """
    free = content_free_nodes(program)
    longest = min(program.info.max_context or _LONGEST, _LONGEST)
    shortest, by = longest, ""
    for node in program.graph.nodes:
        table, rows, index = _look_up(node)
        if index not in free or any(isinstance(size, torch.SymInt) for size in rows):
            continue
        symbolic = [i for i, s in enumerate(index.meta["val"].shape) if isinstance(s, torch.SymInt)]
        if len(symbolic) != 1:
            continue
        value = evaluate(program, [index], shortest)[index].movedim(symbolic[0], 0)
        outside = ((value >= rows[0]) | (value < -rows[0])).reshape(shortest, -1).any(1).nonzero()
        if len(outside) and int(outside[0]) > 0:
            shortest, by = int(outside[0]), f"'{node.name}' looks up {rows[0]} rows of '{table}'"
    if not by:
        return None
    program.info = replace(program.info, max_context=shortest)
    return f"{by}: sequences have at most {shortest} tokens."


def _look_up(node: fx.Node) -> tuple[str, list[Any], Any]:
    """The table, how many rows it has, and the index; no index when `node` looks up nothing."""
    if node.target is aten.embedding.default:
        table, index, axis = node.args[0], node.args[1], 0
    elif node.target is aten.index_select.default:
        table, axis, index = node.args[:3]  # type: ignore[assignment]
    else:
        return "", [], None
    assert isinstance(table, fx.Node)
    return table.name, [table.meta["val"].shape[axis]], index
