"""Logits only for the tokens that are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import networkx as nx
import torch
from torch import fx

from graphwright.ir import PassError, Program
from graphwright.ir.layout import row_axis, size_of
from graphwright.passes.base import Pass, Stage
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.token_axis import find_token_axes
from graphwright.passes.token_rule import TokenAxes

__all__ = ["SelectSampledRows"]

aten = torch.ops.aten
_LOOKS_BACK = {
    torch.ops.gw.cached_attention.default,
    torch.ops.gw.cached_scan.default,
    torch.ops.gw.causal_conv.default,
}


@dataclass(frozen=True)
class SelectSampledRows(Pass):
    """x after the last attention  →  gw.select_rows(x, sample_rows); logits are [R, vocab].

    Selects the earliest value that everything on the way to the logits goes through, so that what
    follows works on the sampled rows only: usually the residual stream after the last attention.
    """

    stage: ClassVar[Stage] = Stage.ATTENTION
    after: ClassVar = (InsertKvCache,)
    optional: ClassVar = False

    def run(self, program: Program) -> int:
        if any(n.target is torch.ops.gw.select_rows.default for n in program.graph.nodes):
            return 0
        axes = find_token_axes(program)
        chosen = _earliest_cut(program, axes)
        rows = program.add_input("sample_rows", ["R"], torch.int32, hint=2)
        selected = _select(program, chosen, rows)
        _infer_again(program, selected, rows)
        return 1


def _earliest_cut(program: Program, axes: TokenAxes) -> fx.Node:
    """The first value laid out in rows that every path from the tokens to the logits takes."""
    graph: nx.DiGraph[Any] = nx.DiGraph()
    for node, axis in axes.items():
        if axis is None or node.op == "output":
            continue
        sources = [n for n in node.all_input_nodes if axes[n] is not None]
        if node.target in _LOOKS_BACK or not sources:
            graph.add_edge("root", node)
        graph.add_edges_from((source, node) for source in sources)
    parents = nx.immediate_dominators(graph, "root")
    best = program.output
    dominator: Any = best
    while dominator != "root":
        if row_axis(dominator.meta["val"]) is not None and dominator.op != "placeholder":
            best = dominator
        dominator = parents[dominator]
    return best


def _select(program: Program, node: fx.Node, rows: fx.Node) -> fx.Node:
    """The rows of `node` that `rows` names, in place of it for all its users."""
    users = list(node.users)
    value = node.meta["val"]
    axis = row_axis(value)
    assert axis is not None
    inner = [int(size) for size in value.shape[axis + 1 :]]
    before = node.next
    flat = node
    if axis:
        flat = program.call(before, aten.reshape.default, node, [-1, *inner])
    selected = program.call(before, torch.ops.gw.select_rows.default, flat, rows)
    if axis:
        selected = program.call(before, aten.reshape.default, selected, [1] * axis + [-1, *inner])
    for user in users:
        user.replace_input_with(node, selected)
    return selected


def _infer_again(program: Program, selected: fx.Node, rows: fx.Node) -> None:
    """Infers everything behind `selected` anew, with rows counted where tokens were."""
    nodes = list(program.graph.nodes)
    first = next(n for n in nodes if n.op not in ("placeholder", "get_attr"))
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    behind = {selected}
    count: fx.Node | None = None
    for node in nodes[nodes.index(selected) + 1 :]:
        if node.op == "output" or not behind & set(node.all_input_nodes):
            continue
        for argument in list(node.all_input_nodes):
            size = argument.meta["val"]
            if argument in behind or not isinstance(size, torch.SymInt):
                continue
            if size_of(size) != tokens:
                raise PassError(
                    f"node '{node.name}' takes the size '{argument.name}' = {size}, which cannot "
                    f"be given for the sampled rows."
                )
            count = count or program.call(first, aten.sym_size.int, rows, 0)
            node.replace_input_with(argument, count)
        program.infer(node)
        behind.add(node)
