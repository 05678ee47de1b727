"""Writing out stubs: each becomes a copy of what was traced for the layer that it is like."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from graphwright.frontend.layer_markers import ENTER, LEAVE, SKIPPED
from graphwright.frontend.layer_twins import Layer

__all__ = ["CannotCopyError", "write_out"]

_Nodes = dict[fx.Node, fx.Node]


class CannotCopyError(Exception):
    """What was traced for a layer cannot stand in another place."""


def write_out(
    exported: ExportedProgram, forward: nn.Module, pairs: dict[int, tuple[Layer, Layer]]
) -> None:
    """Replaces all marks and stubs in the graph of `exported`, an export of `forward`.

    pairs: by the number of a stub, the layer that was traced and the one that the stub is for.
    Raises CannotCopyError; the graph is then half done.
    """
    graph = exported.graph
    stubs: dict[int, dict[int, fx.Node]] = {}
    for node in graph.nodes:
        if node.target is SKIPPED:
            stubs.setdefault(int(node.args[3]), {})[int(node.args[4])] = node
    bodies = _bodies(graph)
    weights = _weights(exported, forward)
    for number, results in stubs.items():
        first, layer = pairs[number]
        values = _counterparts(weights, first, layer)
        copies = _copy(graph, bodies[first.number], next(iter(results.values())), values)
        for index, stub in results.items():
            if index not in copies:
                raise CannotCopyError(f"result {index} of '{first.path}' is not in the graph")
            stub.replace_all_uses_with(copies[index])
            graph.erase_node(stub)
        for copy in values.values():
            _rename(copy, first.path, layer.path)
    for node in list(graph.nodes):
        if node.target in (ENTER, LEAVE):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _bodies(graph: fx.Graph) -> dict[int, list[fx.Node]]:
    """By the number of a traced layer: its nodes, from its first mark to its last."""
    nodes = list(graph.nodes)
    bounds: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        if node.target in (ENTER, LEAVE):
            bounds.setdefault(int(node.args[1]), []).append(place)
    bodies = {number: nodes[min(found) : max(found) + 1] for number, found in bounds.items()}
    for node in (node for body in bodies.values() for node in body):
        leaves = pytree.tree_leaves(node.meta.get("val"))
        if any(free_unbacked_symbols(leaf) for leaf in leaves if leaf is not None):
            raise CannotCopyError(f"the size of '{node.name}' depends on values")
    return bodies


def _weights(exported: ExportedProgram, forward: nn.Module) -> dict[int, fx.Node]:
    """The placeholder of each parameter and buffer, by its id."""
    held: dict[str, torch.Tensor] = dict(forward.named_buffers(remove_duplicate=False))
    held.update(forward.named_parameters(remove_duplicate=False))
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    return {
        id(held[spec.target]): nodes[spec.arg.name]
        for spec in exported.graph_signature.input_specs
        if spec.target in held
    }


def _counterparts(weights: dict[int, fx.Node], first: Layer, layer: Layer) -> _Nodes:
    found: _Nodes = {}
    for name, tensor in first.tensors.items():
        if id(tensor) in weights:
            if id(layer.tensors[name]) not in weights:
                raise CannotCopyError(f"'{layer.path}.{name}' is no input of the graph")
            found[weights[id(tensor)]] = weights[id(layer.tensors[name])]
    return found


def _copy(
    graph: fx.Graph, body: list[fx.Node], stub: fx.Node, values: _Nodes
) -> dict[int, fx.Node]:
    """Copies `body` in front of `stub`; returns its results by index. `values`, which holds the
    weights to begin with, gets the copy of each node."""
    inputs: Any = stub.args[0]
    results: dict[int, fx.Node] = {}
    for node in body:
        args: Any = node.args
        if node.target is ENTER:
            values[node] = inputs[args[2]]
        elif node.target is LEAVE:
            results[args[2]] = values.get(args[0], args[0])
        elif node.target is SKIPPED:
            raise CannotCopyError(f"'{node.name}' is inside of another layer")
        elif node.op == "call_function" and _has_tensors(node):
            with graph.inserting_before(stub):
                values[node] = graph.node_copy(node, lambda source: values.get(source, source))
        # Sizes are the same in every layer: a node that computes one is shared.
    return results


def _has_tensors(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return value is None or any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(value))


def _rename(node: fx.Node, old: str, new: str) -> None:
    """The modules in which a copied node is, by their own names."""
    stack = node.meta.get("nn_module_stack")
    if stack:
        node.meta["nn_module_stack"] = {
            key: (_moved(path, old, new), kind) for key, (path, kind) in stack.items()
        }


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(f"{old}.") else path
