"""Moves that move nothing, and values that are computed twice, leave a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["tidy_step"]

aten = torch.ops.aten
_MOVES = frozenset({aten.expand.default, aten.reshape.default, aten.slice.Tensor})


def tidy_step(graph: fx.Graph) -> None:
    """expand, reshape or slice to the shape that x has  →  x, one of two equal calls  →  the other,
    a slice of one element of an expanded axis  →  a slice of what was expanded."""
    known: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        source: Any = node.args[0] if node.args else None
        if node.target is aten.slice.Tensor and source.target is aten.expand.default:
            source = _before_expand(node, source)
            node.args = (source, *node.args[1:])
        if node.target in _MOVES and source.meta["val"].shape == node.meta["val"].shape:
            _replace(graph, node, source)
            continue
        key = f"{node.target} {fx.node.map_arg((node.args, node.kwargs), lambda n: n)!r}"
        if key in known:
            _replace(graph, node, known[key])
        else:
            known[key] = node
    graph.eliminate_dead_code()


def _before_expand(node: fx.Node, expand: fx.Node) -> fx.Node:
    """What `expand` repeats, where `node` takes the first of the repetitions and nothing else."""
    source: Any = expand.args[0]
    axis, start, end = [*node.args[1:], 0, None][:3]
    same = source.meta["val"].dim() == expand.meta["val"].dim()
    if not same or (start, end) != (0, 1) or not isinstance(axis, int):
        return expand
    return source if source.meta["val"].shape == node.meta["val"].shape else expand


def _replace(graph: fx.Graph, old: fx.Node, new: fx.Node) -> None:
    old.replace_all_uses_with(new)
    graph.erase_node(old)
