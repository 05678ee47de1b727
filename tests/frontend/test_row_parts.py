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
from graphwright.frontend.row_parts.forms import PRODUCTS, Form
from graphwright.frontend.row_parts.program import part_program
from graphwright.frontend.row_parts.replace import PartCall, part_module, replace_parts
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
        assert len(graphs) == 1, "traced again"
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
        query, key = (self.rotate(each, angles[None, None]) for each in (query, key))
        mixed = torch.softmax(query @ key.transpose(2, 3), -1) @ value
        h = h + self.output(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        x = self.norm(h, 1)
        h = h + self.down(F.silu(self.gate(x)) * self.up(x))
        return h if self.next is None else self.next(h, angles)

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
    """`rotated` (three layers), `normed`, or a feed-forward network `plain`, traced once."""
    torch.manual_seed(1)
    h = hidden(batch, length, WIDTH)
    if kind == "rotated":
        return trace(Rotated(3), h, hidden(length, SIZE), dynamic=dynamic)
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
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("kind", "count"), [("rotated", [3, 4 + 3, 4 + 3, 4]), ("normed", [1, 3]), ("plain", [2])]
)
def test_a_layer_is_one_part_from_one_attention_to_the_next(
    kind: str, count: list[int], batch: int, dynamic: bool
) -> None:
    one = traced(kind, batch, 3, dynamic)
    found = found_in(one)
    assert [products(part) for part in found.parts] == count
    assert not found.refused
    calls = [by_torch(one.module, part, found) for part in found.parts]
    replaced = replace_parts(one.module, calls)
    left = [node.target for node in replaced.graph.nodes]
    assert not set(left) & set(PRODUCTS) and sum(call.run in left for call in calls) == len(calls)
    angles = [hidden(3, SIZE, seed=2)] if kind == "rotated" else []
    given = one.arguments(hidden(batch, 3, WIDTH, seed=1), *angles)
    for got, want in zip(replaced(*given), one.module(*given), strict=True):
        assert torch.equal(got, want)


def count(part: RowPart, target: Any) -> int:
    return sum(node.target is target for node in part.nodes)


def test_angles_for_a_batch_are_spread_so_that_a_rotation_stays_in_its_part() -> None:
    single, several = found_in(traced("rotated", 1, 3)), found_in(traced("rotated", 2, 3))
    for one, other in zip(single.parts, several.parts, strict=True):
        for target in (aten.cat.default, aten.neg.default, aten.mul.Tensor, aten.add.Tensor):
            assert count(one, target) == count(other, target)
    assert count(several.parts[0], aten.cat.default) == 2
    spread = [n for n, _ in several.parts[0].inputs if n.target is aten.expand.default]
    assert spread and {tuple(node.meta["val"].shape) for node in spread} == {(2, 1, 3, SIZE)}
    assert {form for node, form in several.parts[0].inputs if node in spread} == {Form((0, 2))}
    assert all(n.target is not aten.expand.default for n, _ in single.parts[0].inputs)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", ["rotated", "normed", "plain"])
def test_a_part_lists_what_it_reads_and_what_others_read_of_it(kind: str, dynamic: bool) -> None:
    found = found_in(traced(kind, 2, 3, dynamic))
    seen: set[fx.Node] = set()
    for part in found.parts:
        members = set(part.nodes)
        assert not members & seen and members <= set(found.forms)
        seen |= members
        read = {source for node in part.nodes for source in node.all_input_nodes} - members
        listed = [*(node for node, _ in part.inputs), *part.constants, *part.numbers]
        assert read <= set(listed) and len(set(listed)) == len(listed)
        assert set(part.constants) <= found.constants
        assert all(isinstance(n.meta["val"], (int, torch.SymInt)) for n in part.numbers)
        users = {node for node in part.nodes if set(node.users) - members}
        assert list(part.outputs) == [node for node in part.nodes if node in users]


def test_what_only_moves_elements_stays_outside_at_both_ends() -> None:
    (part,) = found_in(traced("plain", 2, 3)).parts
    assert [str(node.target) for node in part.nodes] == [
        "aten.addmm.default", "aten.view.default", "aten.relu.default", "aten.view.default",
        "aten.addmm.default",
    ]  # fmt: skip
    ((read, form),) = part.inputs
    assert str(read.target) == "aten.view.default" and form == Form((0,))
    assert part.outputs == (part.nodes[-1],)


def test_layers_of_one_kind_have_the_same_program() -> None:
    found = found_in(traced("rotated", 2, 3))
    first, *alike, last = [format_graph(part_program(p, found, {})[0]) for p in found.parts]
    assert len(alike) == 2 and alike[0] == alike[1]
    assert len({first, alike[0], last}) == 3
    other = found_in(traced("rotated", 2, 3, True))
    assert format_graph(part_program(other.parts[-1], other, {})[0]) == last


# ---- what is left to torch, and why


class Product(nn.Linear):
    """A product with the weights of a layer, written by hand."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__(WIDTH, WIDTH)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def test_a_softmax_between_two_products_makes_two_parts() -> None:
    one = trace(Between(lambda h: torch.softmax(h, -1)), hidden(5, WIDTH))
    found = found_in(one)
    assert [products(part) for part in found.parts] == [1, 1] and not found.refused
    assert {str(node.target) for part in found.parts for node in part.nodes} == {
        "aten.addmm.default"
    }


def test_a_product_by_an_activation_is_refused_and_parts_its_neighbours() -> None:
    found = found_in(trace(Between(lambda h: h @ h.t()), hidden(WIDTH, WIDTH)))
    assert [products(part) for part in found.parts] == [1, 1]
    ((product, reason),) = found.refused.items()
    assert str(product.target) == "aten.mm.default" and reason.endswith("no weight")
    one = trace(lambda x: x @ x.t(), hidden(WIDTH, WIDTH))
    assert list(found_in(one).refused.values()) == ["'t' is no weight"]


@pytest.mark.parametrize(
    ("function", "dtype", "reason"),
    [
        (
            lambda x, w, b: torch.addmm(b, x, w, alpha=0.5),
            torch.float32,
            "scaled by {'alpha': 0.5}",
        ),
        (lambda x, w, b: torch.addmm(b, x, w, beta=2), torch.float32, "scaled by {'beta': 2}"),
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
