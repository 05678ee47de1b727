"""Which operators of a traced graph run together, row by row, and what is left to torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext

from graphwright.frontend.row_parts.find import Found, RowPart, find_row_parts
from graphwright.frontend.row_parts.forms import PRODUCTS
from graphwright.frontend.row_parts.program import part_program
from graphwright.frontend.row_parts.replace import PartCall, part_module

aten = torch.ops.aten
HEADS, SIZE, WIDTH, INNER = 2, 4, 8, 12


@dataclass(frozen=True)
class Traced:
    """A graph as AOTAutograd gives it for inference, its weights, and what it is called with."""

    module: fx.GraphModule
    weights: tuple[fx.Node, ...]
    arguments: Callable[..., tuple[Any, ...]]


def trace(module: Callable[..., Any], *inputs: Tensor, dynamic: bool = False) -> Traced:
    """The one graph of `module`; with `dynamic`, its sizes are symbolic where they may be."""
    graphs: list[fx.GraphModule] = []
    weights: list[fx.Node] = []
    calls: list[tuple[Any, ...]] = []

    def keep(graph: fx.GraphModule, example: Any) -> Callable[..., Any]:
        metadata = TracingContext.get().fw_metadata
        assert metadata is not None and metadata.static_input_indices is not None
        placeholders = graph.graph.find_nodes(op="placeholder")
        weights.extend(placeholders[place] for place in metadata.static_input_indices)
        graphs.append(graph)

        def call(*given: Any) -> Any:
            calls.append(given)
            return graph(*given)

        return call

    torch._dynamo.reset()
    backend: Any = aot_autograd(fw_compiler=keep, inference_compiler=keep)
    compiled = torch.compile(module, backend=backend, dynamic=dynamic, fullgraph=True)

    def arguments(*given: Tensor) -> tuple[Any, ...]:
        with torch.no_grad():
            compiled(*given)
        (graph,) = graphs
        return calls[-1]

    arguments(*inputs)
    return Traced(graphs[0], tuple(weights), arguments)


class Rotated(nn.Module):
    """A decoder layer with RMS norms, a rotation, attention and a gated feed-forward network."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        for name in ("query", "key", "value", "output"):
            self.add_module(name, nn.Linear(WIDTH, WIDTH, bias=False))
        self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH, bias=False)
        self.scales = nn.Parameter(torch.rand(2, WIDTH) + 0.5)
        self.next = Rotated(layers - 1) if layers > 1 else None

    def forward(self, h: Tensor, angles: Tensor) -> Tensor:
        batch, length, _ = h.shape
        x = self.norm(h, 0)
        query, key, value = (
            getattr(self, name)(x).view(batch, length, HEADS, SIZE).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        query, key = (self.rotate(each, angles.cos(), angles.sin()) for each in (query, key))
        mixed = torch.softmax(query @ key.transpose(2, 3), -1) @ value
        h = h + self.output(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        x = self.norm(h, 1)
        h = h + self.down(F.silu(self.gate(x)) * self.up(x))
        return h if self.next is None else self.next(h, angles)

    def norm(self, h: Tensor, place: int) -> Tensor:
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scales[place]

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = torch.cat([-x[..., SIZE // 2 :], x[..., : SIZE // 2]], -1)
        return x * cos + turned * sin


class Normed(nn.Module):
    """A layer with LayerNorms, biases and one product for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        batch, length, _ = h.shape
        query, key, value = (
            each.view(batch, length, HEADS, SIZE).transpose(1, 2)
            for each in self.attention(self.first(h)).split(WIDTH, -1)
        )
        mixed = torch.softmax(query @ key.transpose(2, 3), -1) @ value
        h = h + self.output(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return h + self.down(F.gelu(self.up(self.second(h)), approximate="tanh"))


class Between(nn.Module):
    """Two products, and in between what `function` does."""

    def __init__(self, function: Callable[[Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH, bias), nn.Linear(WIDTH, WIDTH, bias)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.function(self.first(x)))
        return y


def hidden(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


@functools.cache
def traced(kind: str, batch: int, length: int, dynamic: bool = False) -> Traced:
    """`rotated` (two layers), `normed`, or a feed-forward network `plain`, traced once."""
    torch.manual_seed(1)
    h = hidden(batch, length, WIDTH)
    if kind == "rotated":
        return trace(Rotated(2), h, hidden(length, SIZE), dynamic=dynamic)
    return trace(Normed() if kind == "normed" else Between(F.relu), h, dynamic=dynamic)


def found_in(one: Traced) -> Found:
    return find_row_parts(one.module.graph, one.weights)


def products(part: RowPart) -> int:
    return sum(node.target in PRODUCTS for node in part.nodes)


def by_torch(module: fx.GraphModule, part: RowPart, found: Found) -> PartCall:
    """A call that runs the operators of `part` as torch does."""
    _, _, sources = part_program(part, found, {})
    inner = part_module(module, part, sources)

    def run(*given: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = inner(*given)
        return outputs

    return PartCall(part, sources, run)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("kind", "count"), [("rotated", [3, 4 + 3, 4]), ("normed", [1, 3]), ("plain", [2])]
)
def test_a_layer_is_one_part_from_one_attention_to_the_next(
    kind: str, count: list[int], dynamic: bool
) -> None:
    one = traced(kind, 2, 3, dynamic)
    found = found_in(one)
    assert [products(part) for part in found.parts] == count
    assert not found.refused
