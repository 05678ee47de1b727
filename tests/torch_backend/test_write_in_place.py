"""Writes into an argument: in place where nobody reads what was there, as they were elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from graphwright.torch_backend.write_in_place import write_in_place

aten = torch.ops.aten
Write = Callable[[fx.Graph, fx.Node, fx.Node, fx.Node], fx.Node]


def build(body: Write) -> fx.GraphModule:
    """A graph of cache [4, 3], rows [2, 3] and index [2], as AOTAutograd gives one."""
    graph, mode = fx.Graph(), FakeTensorMode()
    arguments = []
    shapes = {"cache": (4, 3), "rows": (2, 3), "index": (2,)}
    for name, shape in shapes.items():
        node = graph.placeholder(name)
        with mode:
            dtype = torch.int64 if name == "index" else torch.float32
            node.meta["val"] = torch.zeros(shape, dtype=dtype)
        arguments.append(node)
    graph.output((body(graph, *arguments),))
    for node in graph.nodes:
        if node.op == "call_function":
            with mode:
                given = fx.node.map_arg(node.args, lambda source: source.meta["val"])
                node.meta["val"] = node.target(*given)
    return fx.GraphModule(torch.nn.Module(), graph)


def plain(graph: fx.Graph, cache: fx.Node, rows: fx.Node, index: fx.Node) -> fx.Node:
    made = graph.call_function(aten.index_copy.default, (cache, 0, index, rows))
    result = graph.call_function(aten.mul.Tensor, (made, 2.0))
    graph.call_function(aten.copy_.default, (cache, made))
    return result


def read_before(graph: fx.Graph, cache: fx.Node, rows: fx.Node, index: fx.Node) -> fx.Node:
    old = graph.call_function(aten.mul.Tensor, (cache, 3.0))
    made = graph.call_function(aten.index_copy.default, (cache, 0, index, rows))
    result = graph.call_function(aten.add.Tensor, (old, made))
    graph.call_function(aten.copy_.default, (cache, made))
    return result


def returned(graph: fx.Graph, cache: fx.Node, rows: fx.Node, index: fx.Node) -> fx.Node:
    made = graph.call_function(aten.index_copy.default, (cache, 0, index, rows))
    graph.call_function(aten.copy_.default, (cache, made))
    return made


def no_variant(graph: fx.Graph, cache: fx.Node, rows: fx.Node, index: fx.Node) -> fx.Node:
    made = graph.call_function(aten.flip.default, (cache, [0]))
    result = graph.call_function(aten.mul.Tensor, (made, 2.0))
    graph.call_function(aten.copy_.default, (cache, made))
    return result


def of_itself(graph: fx.Graph, cache: fx.Node, rows: fx.Node, index: fx.Node) -> fx.Node:
    made = graph.call_function(aten.add.Tensor, (cache, cache))
    result = graph.call_function(aten.mul.Tensor, (made, 2.0))
    graph.call_function(aten.copy_.default, (cache, made))
    return result


@pytest.mark.parametrize(
    ("body", "count"),
    [(plain, 1), (read_before, 0), (returned, 0), (no_variant, 0), (of_itself, 0)],
)
def test_the_same_is_returned_and_written(body: Write, count: int) -> None:
    module, again = build(body), build(body)
    assert write_in_place(module) == count
    targets = [node.target for node in module.graph.nodes]
    assert (aten.index_copy_.default in targets) == bool(count)
    assert (aten.copy_.default in targets) != bool(count)
    assert write_in_place(module) == 0
    caches = [torch.arange(12.0).reshape(4, 3) for _ in range(2)]
    rows, index = torch.randn(2, 3), torch.tensor([3, 1])
    (got,), (want,) = (
        each(cache, rows, index) for each, cache in zip((module, again), caches, strict=True)
    )
    assert torch.equal(got, want)
    assert torch.equal(*caches)
