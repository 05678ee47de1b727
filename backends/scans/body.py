"""The graph of one token, ready to be planned: reductions are only sums, maxima and minima."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.backends.regions.index import Index, Variable, flatten
from graphwright.backends.regions.shapes import MOVES, arguments, refuse
from graphwright.ir.scan_step import ScanState, ScanStep

__all__ = ["Body", "is_reduction"]

aten = torch.ops.aten
ZERO = Index(frozenset())


@dataclass(frozen=True)
class Body:
    """As ScanStep, over a graph of its own. `new_states` and `results` have lost those moves that
    leave all their elements in the same order."""

    placeholders: tuple[fx.Node, ...]
    states: tuple[ScanState, ...]
    rows: int
    new_states: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]

    @classmethod
    def of(cls, step: ScanStep) -> Body:
        """Raises BackendError for a reduction that is not known."""
        graph = fx.Graph()
        returned: Any = graph.graph_copy(step.graph, {})
        graph.output(tuple(returned))
        for node in list(graph.nodes):
            if node.op == "call_function" and (form := _FORMS.get(node.target)) is not None:
                with graph.inserting_before(node):
                    node.replace_all_uses_with(form(graph, node))
        graph.eliminate_dead_code()
        last: Any = graph.output_node().args[0]
        roots = [_root(node) for node in last]
        count = len(step.states)
        placeholders = tuple(node for node in graph.nodes if node.op == "placeholder")
        return cls(placeholders, step.states, step.rows, tuple(roots[:count]), tuple(roots[count:]))

    @property
    def old_states(self) -> dict[fx.Node, int]:
        """The placeholders of the states, and their numbers."""
        return {node: i for i, node in enumerate(self.placeholders[: len(self.states)])}

    @property
    def weights(self) -> tuple[fx.Node, ...]:
        """The placeholders that are the same for all tokens."""
        return self.placeholders[len(self.states) + self.rows :]

    def needed(self) -> list[fx.Node]:
        """All nodes that states and results need, none before what it needs itself."""
        found: dict[fx.Node, None] = {}

        def visit(node: fx.Node) -> None:
            if node not in found:
                for each in node.all_input_nodes:
                    visit(each)
                found[node] = None

        for root in (*self.new_states, *self.results):
            visit(root)
        return list(found)


def is_reduction(node: fx.Node) -> bool:
    """Is it one of those that are left in a body?"""
    kinds = (aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
    return node.op == "call_function" and node.target in kinds


def _root(node: fx.Node) -> fx.Node:
    while (source := _same_elements(node)) is not None:
        node = source
    return node


def _same_elements(node: fx.Node) -> fx.Node | None:
    """The value that `node` is another view of, every element in its place."""
    move = MOVES.get(str(node.target).removeprefix("aten."))
    if node.op != "call_function" or move is None:
        return None
    source: Any = node.args[0]
    sizes, before = ([int(n) for n in each.meta["val"].shape] for each in (node, source))
    if math.prod(sizes) != math.prod(before):
        return None
    indices = [
        Index(frozenset({(Variable(number, 0, size - 1, None), 1)})) if size > 1 else ZERO
        for number, size in enumerate(sizes)
    ]
    moved = move(node, arguments(node), indices)
    return source if flatten(moved, before) == flatten(indices, sizes) else None


# ---- other reductions, by those three


def _call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    node = graph.call_function(target, args, kwargs)
    values = fx.node.map_arg((args, kwargs), lambda each: each.meta["val"])
    node.meta["val"] = target(*values[0], **values[1])
    return node


def _dims(value: torch.Tensor, dims: Any) -> list[int]:
    dims = [dims] if isinstance(dims, int) else (dims or range(value.dim()))
    return [int(dim) % max(1, value.dim()) for dim in dims]


def _count(value: torch.Tensor, dims: list[int]) -> int:
    return math.prod(int(value.shape[dim]) for dim in dims) if value.dim() else 1


def _mean(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = arguments(node)
    value = given["self"].meta["val"]
    dims = _dims(value, given["dim"])
    total = _call(
        graph, aten.sum.dim_IntList, given["self"], dims, given["keepdim"],
        dtype=node.meta["val"].dtype,
    )  # fmt: skip
    return _call(graph, aten.mul.Tensor, total, 1 / _count(value, dims))


def _softmax(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = arguments(node)
    x, dtype = given["self"], node.meta["val"].dtype
    if x.meta["val"].dtype != dtype:
        x = _call(graph, aten._to_copy.default, x, dtype=dtype)
    dims = _dims(x.meta["val"], given["dim"])
    top = _call(graph, aten.amax.default, x, dims, True)
    power = _call(graph, aten.exp.default, _call(graph, aten.sub.Tensor, x, top))
    total = _call(graph, aten.sum.dim_IntList, power, dims, True)
    return _call(graph, aten.div.Tensor, power, total)


def _var(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = arguments(node)
    x, dims = given["self"], _dims(given["self"].meta["val"], given["dim"])
    count = _count(x.meta["val"], dims)
    mean = _call(graph, aten.sum.dim_IntList, x, dims, True)
    mean = _call(graph, aten.mul.Tensor, mean, 1 / count)
    away = _call(graph, aten.sub.Tensor, x, mean)
    square = _call(graph, aten.mul.Tensor, away, away)
    total = _call(graph, aten.sum.dim_IntList, square, dims, given["keepdim"])
    correction = 1 if given["correction"] is None else given["correction"]
    return _call(graph, aten.div.Tensor, total, float(max(0.0, count - correction)))


def _norm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = arguments(node)
    if given["ord"] != 2:
        raise refuse(node, f"has order {given['ord']}, not 2")
    x, dims = given["self"], _dims(given["self"].meta["val"], given["dim"])
    square = _call(graph, aten.mul.Tensor, x, x)
    total = _call(
        graph, aten.sum.dim_IntList, square, dims, given["keepdim"], dtype=node.meta["val"].dtype
    )
    return _call(graph, aten.sqrt.default, total)


_FORMS: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node]] = {
    aten.mean.dim: _mean,
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten.var.correction: _var,
    aten.linalg_vector_norm.default: _norm,
}
