"""What is the same along an axis of a step is computed once along it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.ir.levels import POINTWISE

__all__ = ["shrink_repeats"]

aten = torch.ops.aten
Varies = tuple[bool, ...]
"""By axis: may elements differ along it?"""


def shrink_repeats(graph: fx.Graph) -> None:
    """exp(expand(x, [H, P, N]))  →  expand(exp(x), [H, P, N]), for any pointwise op whose operands
    all repeat along an axis. Every node has meta["val"], of static shape."""
    varies: dict[fx.Node, Varies] = {}
    for node in list(graph.nodes):
        if node.op == "output":
            continue
        varies[node] = _varies(node, varies)
        if node.op == "call_function" and _name(node) in POINTWISE:
            sizes = node.meta["val"].shape
            same = [i for i, size in enumerate(sizes) if size > 1 and not varies[node][i]]
            if same:
                _shrink(graph, node, same, varies)


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.")


def _varies(node: fx.Node, known: dict[fx.Node, Varies]) -> Varies:
    value = node.meta["val"]
    every = tuple(size > 1 for size in value.shape)
    if node.op != "call_function":
        return every
    sources = [source for source in node.all_input_nodes if source in known]
    if node.target is aten.expand.default or _name(node) in POINTWISE:
        found = [False] * value.dim()
        for source in sources:
            for axis, one in enumerate(reversed(known[source])):
                found[-1 - axis] |= one
        return tuple(found)
    first: Any = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or first not in known:
        return every
    own, rank = list(known[first]), first.meta["val"].dim()
    axes: Any = node.args[1] if len(node.args) > 1 else None
    if node.target is aten.unsqueeze.default:
        own.insert(axes % (rank + 1), False)
        return tuple(own)
    if node.target in (aten.squeeze.dim, aten.squeeze.dims):
        gone = {a % rank for a in ([axes] if isinstance(axes, int) else axes)}
        sizes = first.meta["val"].shape
        return tuple(v for i, v in enumerate(own) if i not in gone or sizes[i] != 1)
    if node.target is aten.permute.default:
        return tuple(own[axis % rank] for axis in axes)
    if node.target is aten.transpose.int:
        other: Any = node.args[2]
        own[axes % rank], own[other % rank] = own[other % rank], own[axes % rank]
        return tuple(own)
    if node.target is aten.slice.Tensor:
        return tuple(own)
    if node.target is aten.sum.dim_IntList and value.dim() == rank - len(axes):
        gone = {axis % rank for axis in axes}
        return tuple(v for i, v in enumerate(own) if i not in gone)
    return every


def _shrink(graph: fx.Graph, node: fx.Node, same: list[int], varies: dict[fx.Node, Varies]) -> None:
    value = node.meta["val"]
    rank = value.dim()

    def one(source: fx.Node) -> fx.Node:
        for axis in same:
            own = axis - rank + source.meta["val"].dim()
            if own >= 0 and source.meta["val"].shape[own] > 1:
                with graph.inserting_before(node):
                    cut = graph.call_function(aten.slice.Tensor, (source, own, 0, 1))
                cut.meta["val"] = source.meta["val"].narrow(own, 0, 1)
                varies[cut] = varies[source]
                source = cut
        return source

    sizes = list(value.shape)
    with graph.inserting_after(node):
        whole = graph.call_function(aten.expand.default, (node, sizes))
    node.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)
    node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), one)
    for axis in same:
        value = value.narrow(axis, 0, 1)
    node.meta["val"], whole.meta["val"] = value, node.meta["val"]
    varies[whole] = varies[node]
