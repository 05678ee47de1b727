"""The graph without its parts: each becomes one call, and the rest stays as it was."""

from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.frontend.row_parts.find import RowPart
from graphwright.frontend.row_parts.form_rules import (
    cat_parts,
)
from graphwright.frontend.row_parts.forms import (
    LAYOUT,
    VIEWS,
)
from graphwright.ir.layout import size_of

__all__ = ["PartCall", "part_module", "replace_parts"]

aten = torch.ops.aten
_ALIASES = LAYOUT | {aten.slice.Tensor, aten.select.int, aten.expand.default}


@dataclass(frozen=True)
class PartCall:
    """What stands for a part: `run(*inputs, *weights, *numbers)` returns its outputs in order."""

    part: RowPart
    weights: Sequence[fx.Node]
    run: Callable[..., tuple[torch.Tensor, ...]]


def replace_parts(module: fx.GraphModule, calls: Sequence[PartCall]) -> fx.GraphModule:
    """A copy of `module` that runs `calls` in place of their parts.

    Nodes keep their order, but for what a part must wait for.
    """
    old, graph = module.graph, fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    seen = _seen_from_outside(old)
    owner = {node: call for call in calls for node in call.part.nodes}
    for item in _schedule(old, owner):
        if isinstance(item, fx.Node):
            values[item] = _copy(graph, item, values)
            continue
        given = [*(node for node, _ in item.part.inputs), *item.weights, *item.part.numbers]
        result = graph.call_function(item.run, tuple(values[node] for node in given))
        for number, node in enumerate(item.part.outputs):
            values[node] = graph.call_function(operator.getitem, (result, number))
            values[node].meta = dict(node.meta)
            if node in seen and _is_dense(node.meta["val"]):
                values[node] = graph.call_function(aten.contiguous.default, (values[node],))
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(module, graph)


def _seen_from_outside(graph: fx.Graph) -> set[fx.Node]:
    """What the graph returns, and what that is a view of: its caller may count on strides."""
    found: set[fx.Node] = set()
    pending = list(graph.output_node().all_input_nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes[:1] if node.target in _ALIASES else []
    return found


def _is_dense(value: Any) -> bool:
    """Is it contiguous? Asked of expressions, so that no size is guarded."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return False
    expected: Any = 1
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        if size_of(size) != 1 and size_of(stride) != expected:
            return False
        expected = expected * size_of(size)
    return True


def part_module(
    module: fx.GraphModule, part: RowPart, weights: Sequence[fx.Node]
) -> fx.GraphModule:
    """The operators of a part as torch runs them: a PartCall's `run`.

    weights: those that its constants are made of.
    """
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    places = [
        (node, graph.placeholder(f"given_{place}"))
        for place, node in enumerate([*(n for n, _ in part.inputs), *weights, *part.numbers])
    ]
    values.update(places)

    def constant(node: fx.Node) -> fx.Node:
        if node not in values:
            for source in node.all_input_nodes:
                constant(source)
            values[node] = graph.node_copy(node, values.__getitem__)
        return values[node]

    for node in part.constants:
        constant(node)
    for node in part.nodes:
        if node.target is aten.cat.default:
            parts = [values[each] for each in cat_parts(node)]  # the empty ones are not given
            values[node] = graph.call_function(node.target, (parts, *node.args[1:]))
        else:
            values[node] = _copy(graph, node, values)
    graph.output(tuple(values[node] for node in part.outputs))
    graph.lint()
    return fx.GraphModule(module, graph)


def _copy(graph: fx.Graph, node: fx.Node, values: dict[fx.Node, fx.Node]) -> fx.Node:
    """A part's results lie in memory as they like; what views them must not count on strides."""
    copy = graph.node_copy(node, values.__getitem__)
    if copy.target in VIEWS:
        copy.target = aten.reshape.default
    return copy


def _schedule(graph: fx.Graph, owner: dict[fx.Node, PartCall]) -> list[fx.Node | PartCall]:
    """Nodes and calls in an order in which each finds what it reads."""
    unit: dict[fx.Node, Any] = {node: owner.get(node, node) for node in graph.nodes}
    number: dict[Any, int] = {}
    waits: dict[Any, set[Any]] = {}
    for position, node in enumerate(graph.nodes):
        key = _key(unit[node])
        number.setdefault(key, position)
        sources = {_key(unit[source]) for source in node.all_input_nodes}
        waits.setdefault(key, set()).update(sources - {key})
    for call in {id(call): call for call in owner.values()}.values():
        waits[_key(call)] |= {_key(unit[node]) for node in call.weights}
    by_key = {_key(each): each for each in unit.values()}
    readers: dict[Any, list[Any]] = {key: [] for key in waits}
    for key, sources in waits.items():
        for source in sources:
            readers[source].append(key)
    missing = {key: len(sources) for key, sources in waits.items()}
    ready = [(number[key], key) for key, count in missing.items() if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        _, key = heapq.heappop(ready)
        order.append(by_key[key])
        for reader in readers[key]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, (number[reader], reader))
    assert len(order) == len(waits), "a part waits for itself"
    return order


def _key(unit: fx.Node | PartCall) -> int:
    return id(unit)
