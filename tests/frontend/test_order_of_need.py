"""The captured graph does not depend on the order in which Python ran what is independent."""

from __future__ import annotations

import torch
from torch import fx, nn

from graphwright.frontend import capture_module
from graphwright.frontend.order_of_need import in_order_of_need
from graphwright.ir import format_graph


class Tables(nn.Module):
    """Makes a table for each name in the order given, as over a set of strings; uses "b" first."""

    def __init__(self, order: tuple[str, ...]) -> None:
        super().__init__()
        self.order = order
        self.tokens, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        for number, name in enumerate(sorted(order)):
            self.register_buffer(name, torch.arange(8.0) + number)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        made = {name: torch.cos(self.get_buffer(name)) * 2 for name in self.order}
        logits: torch.Tensor = self.head(self.tokens(tokens) * made["b"] + made["a"])
        return logits


def test_independent_nodes_come_in_the_order_of_their_use() -> None:
    programs = []
    for order in (("a", "b", "c"), ("c", "b", "a")):
        torch.manual_seed(0)
        programs.append(capture_module(Tables(order)))
    one, other = programs
    assert format_graph(one) == format_graph(other)
    assert [node.name for node in one.graph.nodes] == [node.name for node in other.graph.nodes]
    assert list(one.weights) == list(other.weights)
    made = [node.args[0].target for node in one.graph.nodes if "cos" in node.name]
    assert made == ["b", "a"]  # nobody reads "c"


def test_what_no_output_needs_comes_last_in_its_old_order() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    checked = [graph.call_function(torch.add, (x, 1)), graph.call_function(torch.sub, (x, 1))]
    late = graph.call_function(torch.mul, (x, 2))
    output = graph.output(late)
    found = in_order_of_need(graph)
    assert found == [x, late, output, *checked]
