"""Writing a region: a submodule of its own, called by one node of the program."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import networkx as nx
import torch
from torch import fx

from graphwright.ir.errors import PassError
from graphwright.ir.program import Program

__all__ = ["insert_region", "sort_graph", "source_line"]

aten = torch.ops.aten


def source_line(node: fx.Node) -> str:
    """` (from FILE, line N: CODE)` when the trace knows it, else nothing."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    return f" (from {' '.join(lines[-2:])})" if lines else ""


def insert_region(
    program: Program, outputs: list[fx.Node], stop: Callable[[fx.Node], bool]
) -> fx.Node:
    """Puts what computes `outputs` into a new submodule and calls it at the end of the graph.

    Inputs of the region are weights, placeholders, results of gw ops and getitem, and the nodes for
    which `stop` holds. The outputs' users read the call (or a getitem of it) instead; call
    `sort_graph` when all regions are in. Names inside depend only on what is computed.
    """
    order, inputs = _cone(outputs, stop)
    inner = _write(program, order, inputs, outputs)
    number = sum(isinstance(child, fx.GraphModule) for child in program.module.children())
    while hasattr(program.module, f"region_{number}"):
        number += 1
    name = f"region_{number}"
    program.module.add_submodule(name, inner)
    values = tuple(node.meta["val"] for node in outputs)
    with program.graph.inserting_before(program.graph.output_node()):
        call = program.graph.call_module(name, tuple(inputs))
        results = [call]
        if len(outputs) > 1:
            results = [
                program.graph.call_function(operator.getitem, (call, position))
                for position in range(len(outputs))
            ]
    call.meta["val"] = values[0] if len(outputs) == 1 else values
    for old, new in zip(outputs, results, strict=True):
        new.meta["val"] = old.meta["val"]
        old.replace_all_uses_with(new)
    return call


def sort_graph(program: Program) -> None:
    """Brings the nodes into an order where each follows what it reads, and drops dead ones."""
    position = {node: i for i, node in enumerate(program.graph.nodes)}
    dag = nx.DiGraph()
    dag.add_nodes_from(position)
    dag.add_edges_from((n, node) for node in position for n in node.all_input_nodes)
    last = program.graph.output_node()
    for node in nx.lexicographical_topological_sort(dag, key=position.__getitem__):
        if node is not last:
            last.prepend(node)
    program.graph.eliminate_dead_code()


def _cone(
    outputs: list[fx.Node], stop: Callable[[fx.Node], bool]
) -> tuple[list[fx.Node], list[fx.Node]]:
    """What computes `outputs`, each node after what it reads, and the inputs in order of need."""
    order: dict[fx.Node, None] = {}
    inputs: dict[fx.Node, None] = {}
    for output in outputs:
        pending = [(output, False)]
        while pending:
            node, read = pending.pop()
            if node in order:
                continue
            if read:
                order[node] = None
            elif node not in outputs and (not _is_aten(node) or stop(node)):
                inputs[node] = None
            else:
                pending.append((node, True))
                needed = [n for n in node.all_input_nodes if not _is_size(n)]
                pending.extend((n, False) for n in reversed(needed))
    return list(order), list(inputs)


def _is_aten(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "namespace", "") == "aten"


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def _write(
    program: Program, order: list[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node]
) -> fx.GraphModule:
    graph = fx.Graph()
    inside: dict[fx.Node, Any] = {}
    for position, node in enumerate(inputs):
        inside[node] = graph.placeholder(f"input_{position}")
        inside[node].meta["val"] = node.meta["val"]
    sizes: dict[str, fx.Node] = {}

    def argument(node: fx.Node) -> Any:
        if not _is_size(node):
            return inside[node]
        text = str(node.meta["val"])
        if text not in sizes:
            sizes[text] = _size_inside(graph, node, [inside[n] for n in inputs])
        return sizes[text]

    for node in order:
        arguments = fx.node.map_arg((node.args, node.kwargs), argument)
        inside[node] = graph.call_function(node.target, *arguments)  # type: ignore[arg-type]
        inside[node].meta["val"] = node.meta["val"]
    results = tuple(inside[node] for node in outputs)
    graph.output(results[0] if len(results) == 1 else results)
    return fx.GraphModule(torch.nn.Module(), graph)


def _size_inside(graph: fx.Graph, size: fx.Node, inputs: list[fx.Node]) -> fx.Node:
    wanted = str(size.meta["val"])
    for node in inputs:
        for axis, actual in enumerate(node.meta["val"].shape):
            if isinstance(actual, torch.SymInt) and str(actual) == wanted:
                found = graph.call_function(aten.sym_size.int, (node, axis))
                found.meta["val"] = size.meta["val"]
                return found
    raise PassError(
        f"cannot be lowered: the size '{size.name}' = {wanted} is the size of no input of its "
        f"region{source_line(size)}."
    )
