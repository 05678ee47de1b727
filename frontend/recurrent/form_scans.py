"""Marked states become recurrences: one gw.scan_along_tokens for each set that needs each other."""

from __future__ import annotations

import operator
from typing import Any

import networkx as nx
import torch
from torch import fx

from graphwright.frontend.order_of_need import in_order_of_need
from graphwright.frontend.recurrent.state_markers import READ, WRITE
from graphwright.frontend.recurrent.step_cut import cut_step, reached
from graphwright.frontend.recurrent.step_graph import StepGraphs
from graphwright.frontend.recurrent.step_vocabulary import StepNodes
from graphwright.ir.layout import size_of
from graphwright.ir.program import Program

__all__ = ["form_scans"]

aten, gw = torch.ops.aten, torch.ops.gw


def form_scans(program: Program) -> int:
    """Replaces every mark in `program`. Returns how many recurrences there are.

    Raises FrontendError for one that is no step of known ops.
    """
    pairs = _pairs(program.graph)
    if not pairs:
        return 0
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    known, graphs = StepNodes(tokens), StepGraphs(tokens)
    for node in list(program.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.drop_dead()
    for write in [node for node in program.graph.nodes if node.target is WRITE]:
        program.replace(write, write.args[0])
    groups, later, loops = _groups(pairs)
    for group in groups:
        others = set().union(*(loops[state] for state in pairs if state not in group))
        _form(program, group, (later[group[0]], others), pairs, known, graphs)
    program.drop_dead()
    _sort(program)
    return len(groups)


def _pairs(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """From each state before a token to what it is afterwards."""
    found: dict[fx.Node, fx.Node] = {}
    for write in graph.nodes:
        if write.target is WRITE:
            for new, handle in zip(write.args[1], write.args[2], strict=True):
                (read,) = (handle.args[0],)
                assert read.target is READ
                old = next(u for u in read.users if u.target is operator.getitem and not u.args[1])
                found[old] = new
    return found


def _groups(
    pairs: dict[fx.Node, fx.Node],
) -> tuple[list[list[fx.Node]], dict[fx.Node, set[fx.Node]], dict[fx.Node, set[fx.Node]]]:
    """States that need each other, together; by the first of these, the others that need it; by
    state, the nodes from it to what it is afterwards."""
    loops: dict[fx.Node, set[fx.Node]] = {}
    needs = nx.DiGraph()
    needs.add_nodes_from(pairs)
    for old, new in pairs.items():
        behind = reached([old], lambda node: node.users)
        loops[old] = behind & reached([new], lambda node: node.all_input_nodes)
        needs.add_edges_from((old, other) for other, new in pairs.items() if new in behind)
    place = {node: i for i, node in enumerate(pairs)}
    groups = [
        sorted(group, key=place.__getitem__) for group in nx.strongly_connected_components(needs)
    ]
    later = {group[0]: set(needs.successors(group[0])) - set(group) for group in groups}
    return sorted(groups, key=lambda group: place[group[0]]), later, loops


def _form(
    program: Program, states: list[fx.Node], apart: tuple[set[fx.Node], set[fx.Node]],
    pairs: dict[fx.Node, fx.Node], known: StepNodes, graphs: StepGraphs,
) -> None:  # fmt: skip
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    new = [pairs[state] for state in states]
    cut = cut_step(states, new, *apart, order, known)
    step = graphs.step(states, new, cut, [_initial(state) for state in states])
    end = program.graph.output_node()
    scan = program.call(end, gw.scan_along_tokens.default, cut.rows, cut.weights, step=step.text())
    scan.meta["stack_trace"] = next(
        (node.meta["stack_trace"] for node in cut.nodes if node.meta.get("stack_trace")), None
    )
    inside, start = set(cut.nodes), 0
    for result in cut.results:
        sizes = [int(size) for size in result.meta["val"].shape[1:]]
        count = torch.Size(sizes).numel()
        part = program.call(end, aten.slice.Tensor, scan, 1, start, start + count)
        part = program.call(end, aten.reshape.default, part, [-1, *sizes])
        start += count
        result.replace_all_uses_with(part, delete_user_cb=lambda user: user not in inside)
        for state, each in pairs.items():
            if each is result and state not in states:
                pairs[state] = part


def _initial(state: fx.Node) -> float:
    """What a state is before the first token."""
    read: Any = state.args[0]
    return float(read.args[3])


def _sort(program: Program) -> None:
    """Every node behind what it reads."""
    graph = program.graph
    last = graph.output_node()
    for node in in_order_of_need(graph):
        if node is not last and node.op not in ("placeholder", "get_attr"):
            last.prepend(node)
