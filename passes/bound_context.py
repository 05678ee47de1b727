"""How long a sequence may get before a position has no row in a table that it looks up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from graphwright.ir.errors import PassError
from graphwright.ir.program import Program
from graphwright.ir.source import source_line
from graphwright.passes.content_free import content_free_nodes, evaluate
from graphwright.passes.index_range import index_range
from graphwright.passes.recognize_counts import counts_of

__all__ = ["bound_context"]

aten = torch.ops.aten
_LONGEST = 2**17  # looked at when the model does not say how long its context is


def bound_context(program: Program) -> str | None:
    """Shortens the program's context to what its tables of positions serve; the reason, if it did.

    Past that the model itself fails with an index out of range; compiled code would read on.
    Raises PassError for an index that follows from counts of tokens and has no known bounds.
    """
    free, counts = content_free_nodes(program), counts_of(program)
    longest = min(program.info.max_context or _LONGEST, _LONGEST)
    shortest, by = longest, ""
    for node in program.graph.nodes:
        table, rows, index = _look_up(node)
        if index is None or any(isinstance(size, torch.SymInt) for size in rows):
            continue
        served = shortest
        if index in free:
            served = _served(program, index, rows[0], shortest)
        elif any(count in _whole_sources(index) for count in counts):
            served = _served_counts(program, node, index, (rows[0], shortest), counts)
        if served < shortest:
            shortest, by = served, f"'{node.name}' looks up {rows[0]} rows of '{table}'"
    if not by:
        return None
    program.info = replace(program.info, max_context=shortest)
    return f"{by}: sequences have at most {shortest} tokens."


def _served(program: Program, index: fx.Node, rows: int, longest: int) -> int:
    """Tokens, up to `longest`, whose content-free `index` lies within `rows`."""
    symbolic = [i for i, s in enumerate(index.meta["val"].shape) if isinstance(s, torch.SymInt)]
    if len(symbolic) != 1:
        return longest
    value = evaluate(program, [index], longest)[index].movedim(symbolic[0], 0)
    outside = ((value >= rows) | (value < -rows)).reshape(longest, -1).any(1).nonzero()
    return int(outside[0]) if len(outside) and int(outside[0]) > 0 else longest


def _served_counts(
    program: Program, node: fx.Node, index: fx.Node, limits: tuple[int, int],
    counts: Sequence[fx.Node],
) -> int:  # fmt: skip
    """Tokens, up to limits[1], whose `index` lies within limits[0] rows, whatever they are."""
    rows, longest = limits

    def outside(tokens: int) -> bool:
        bounds = index_range(program, index, dict.fromkeys(counts, (0, tokens)))
        return bounds is None or bounds[0] < 0 or bounds[1] >= rows

    served = bisect_left(range(1, longest + 1), True, key=outside)
    if served:
        return served
    bounds = index_range(program, index, dict.fromkeys(counts, (0, 1)))
    known = "is not known" if bounds is None else f"may be {bounds[0]} to {bounds[1]}"
    raise PassError(
        f"node '{node.name}' looks up {rows} rows by '{index.name}', which follows from a count of "
        f"tokens and {known} for the first one{source_line(node)}."
    )


def _whole_sources(index: fx.Node) -> set[fx.Node]:
    """What `index` is computed from: whole numbers, and what they were rounded from."""
    seen: set[fx.Node] = set()
    stack = [index]
    while stack:
        node = stack.pop()
        value = node.meta.get("val")
        if node in seen or not isinstance(value, torch.Tensor):
            continue
        seen.add(node)
        if not value.is_floating_point():
            stack += node.all_input_nodes
    return seen


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
