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
from graphwright.frontend.row_parts.forms import (
    PRODUCTS,
    Form,
)
from graphwright.frontend.row_parts.program import part_program
from graphwright.ir.printer import format_graph

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
    kept: list[Any] = []

    def keep(graph: fx.GraphModule, example: Any) -> Callable[..., Any]:
        metadata: Any = TracingContext.get().fw_metadata
        kept.extend((graph, metadata.static_input_indices))

        def call(*given: Any) -> Any:
            kept.append(given)
            return graph(*given)

        return call

    torch._dynamo.reset()
    backend: Any = aot_autograd(fw_compiler=keep, inference_compiler=keep)
    with torch.no_grad():
        torch.compile(module, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)
    graph, places, first = kept
    placeholders = graph.graph.find_nodes(op="placeholder")
    weights = {placeholders[place]: first[place] for place in places}
    others = [node.meta["val"] for node in placeholders if node not in weights]
    fakes = [fake for fake in others if isinstance(fake, Tensor)]

    def arguments(*tensors: Tensor) -> tuple[Any, ...]:
        known: dict[Any, Any] = {id(fake): real for fake, real in zip(fakes, tensors, strict=True)}
        for fake, real in zip(fakes, tensors, strict=True):
            known.update(zip(map(str, fake.shape), real.shape, strict=True))
        given = iter([known.get(id(each), known.get(str(each))) for each in others])
        return tuple(weights[n] if n in weights else next(given) for n in placeholders)

    for got, want in zip(arguments(*inputs), first, strict=True):
        assert got is want or got == want
    return Traced(graph, tuple(weights), arguments)


def heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], HEADS, SIZE).transpose(1, 2)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (torch.softmax(query @ key.mT, -1) @ value).transpose(1, 2).flatten(2)


class Rotated(nn.Module):
    """Decoder layers with RMS norms, a rotation, attention and a gated feed-forward network."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.query, self.key = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.value, self.output = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH, bias=False)
        self.scales = nn.Parameter(torch.rand(2, WIDTH) + 0.5)
        self.next = Rotated(layers - 1) if layers > 1 else None

    def forward(self, h: Tensor, angles: Tensor) -> Tensor:
        x = self.norm(h, 0)
        query, key = (self.rotate(heads(f(x)), angles[None, None]) for f in (self.query, self.key))
        h = h + self.output(attention(query, key, heads(self.value(x))))
        x = self.norm(h, 1)
        h = h + self.down(F.silu(self.gate(x)) * self.up(x))
        after: Tensor = h if self.next is None else self.next(h, angles)
        return after

    def norm(self, h: Tensor, place: int) -> Tensor:
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scales[place]

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        turned = torch.cat([-x[..., SIZE // 2 :], x[..., : SIZE // 2]], -1)
        return x * angles.cos() + turned * angles.sin()


class Normed(nn.Module):
    """A layer with LayerNorms, biases and one product for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        apart = self.attention(self.first(h)).split(WIDTH, -1)
        h = h + self.output(attention(*map(heads, apart)))
        h = h + self.down(F.gelu(self.up(self.second(h)), approximate="tanh"))
        return h


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
    """`rotated` (three layers), `normed`, or a feed-forward network `plain`, traced once."""
    torch.manual_seed(1)
    h = hidden(batch, length, WIDTH)
    if kind == "rotated":
        return trace(Rotated(3), h, hidden(length, SIZE), dynamic=dynamic)
    return trace(Normed() if kind == "normed" else Between(F.relu), h, dynamic=dynamic)


def found_in(one: Traced) -> Found:
    return find_row_parts(one.module.graph, one.weights)


def count(part: RowPart, *targets: Any) -> int:
    return sum(node.target in targets for node in part.nodes)


@pytest.mark.parametrize(("batch", "dynamic"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize(
    ("kind", "products"), [("rotated", [3, 4 + 3, 4 + 3, 4]), ("normed", [1, 3]), ("plain", [2])]
)
def test_a_layer_is_one_part_from_one_attention_to_the_next(
    kind: str, products: list[int], batch: int, dynamic: bool
) -> None:
    found = found_in(traced(kind, batch, 3, dynamic))
    assert [count(part, *PRODUCTS) for part in found.parts] == products and not found.refused


def test_angles_for_a_batch_are_spread_so_that_a_rotation_stays_in_its_part() -> None:
    single, several = (found_in(traced("rotated", batch, 3)).parts for batch in (1, 2))
    for target in (aten.cat.default, aten.neg.default, aten.mul.Tensor, aten.add.Tensor):
        assert [count(part, target) for part in single] == [count(part, target) for part in several]
    assert count(several[0], aten.cat.default) == 2
    spread = [each for each in several[0].inputs if each[0].target is aten.expand.default]
    shapes = {(tuple(node.meta["val"].shape), form) for node, form in spread}
    assert shapes == {((2, 1, 3, SIZE), Form((0, 2)))}
    assert all(node.target is not aten.expand.default for node, _ in single[0].inputs)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", ["rotated", "normed", "plain"])
def test_a_part_lists_what_it_reads_and_what_others_read_of_it(kind: str, dynamic: bool) -> None:
    found = found_in(traced(kind, 2, 3, dynamic))
    nodes = [node for part in found.parts for node in part.nodes]
    assert len(nodes) == len(set(nodes)) and set(nodes) <= set(found.forms)
    for part in found.parts:
        members = set(part.nodes)
        read = {source for node in part.nodes for source in node.all_input_nodes} - members
        listed = [*(node for node, _ in part.inputs), *part.constants, *part.numbers]
        assert read <= set(listed) and len(set(listed)) == len(listed)
        assert list(part.outputs) == [n for n in part.nodes if set(n.users) - members]


def test_what_only_moves_elements_stays_outside_at_both_ends() -> None:
    (part,) = found_in(traced("plain", 2, 3)).parts
    assert [node.name for node in part.nodes] == ["addmm", "view_1", "relu", "view_2", "addmm_1"]
    assert [(node.name, form) for node, form in part.inputs] == [("view", Form((0,)))]
    assert part.outputs == (part.nodes[-1],)


def test_layers_of_one_kind_have_the_same_program() -> None:
    found = found_in(traced("rotated", 2, 3))
    first, *alike, last = [format_graph(part_program(p, found, {})[0]) for p in found.parts]
    assert len(alike) == 2 and alike[0] == alike[1] and len({first, alike[0], last}) == 3


# ---- what is left to torch, and why


class Product(nn.Linear):
    """A product with the weights of a layer, written by hand."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__(WIDTH, WIDTH)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def test_a_softmax_between_two_products_makes_two_parts() -> None:
    found = found_in(trace(Between(lambda h: torch.softmax(h, -1)), hidden(5, WIDTH)))
    assert [len(part.nodes) for part in found.parts] == [1, 1] and not found.refused


def test_a_product_by_an_activation_is_refused_and_parts_its_neighbours() -> None:
    found = found_in(trace(Between(lambda h: h @ h.t()), hidden(WIDTH, WIDTH)))
    assert [count(part, *PRODUCTS) for part in found.parts] == [1, 1]
    assert [node.name for node in found.refused] == ["mm"]


@pytest.mark.parametrize(
    ("function", "dtype", "reason"),
    [
        (lambda x, w, b: b.addmm(x, w, alpha=2), torch.float32, "scaled by {'alpha': 2}"),
        (lambda x, w, b: b.addmm(x, w, beta=2), torch.float32, "scaled by {'beta': 2}"),
        (lambda x, w, b: x @ x.cos(), torch.float32, "'cos' is no weight"),
        (lambda x, w, b: x.long() @ w.long(), torch.float32, "torch.int64 on cpu"),
        (lambda x, w, b: F.relu(x @ w + b), torch.float64, "torch.float64 on cpu"),
        (lambda x, w, b: x * (w @ w.sin()) + b, torch.float32, "both operands are weights"),
    ],
)
def test_products_that_no_part_can_have_are_refused_with_a_reason(
    function: Callable[..., Tensor], dtype: torch.dtype, reason: str
) -> None:
    found = found_in(trace(Product(function).to(dtype), hidden(WIDTH, WIDTH).to(dtype)))
    assert not found.parts and not found.forms
    assert [why.removeprefix("it is ") for why in found.refused.values()] == [reason]
