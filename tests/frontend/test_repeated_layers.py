"""Layers that are alike are traced once, and nobody can tell; layers that differ are not alike."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from tiny_models import random_tokens, tiny_model
from torch import nn
from torch.nn import functional as F

from graphwright.frontend import capture_module, repeated_layers
from graphwright.frontend.layer_stubs import StubbedLayers
from graphwright.frontend.layer_twins import find_layers
from graphwright.frontend.repeated_layers import find_classes
from graphwright.frontend.stateless import StatelessForward, float32_parameters
from graphwright.ir import FrontendError, Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close

LENGTHS = (1, 2, 7, 33)


def copies(model: nn.Module) -> dict[int, int]:
    """By the number of a layer that is not traced, that of the layer it is a copy of."""
    forward = StatelessForward(model)
    with float32_parameters(model):
        layers = [layer for group in find_layers(forward).values() for layer in group]
        with StubbedLayers(layers) as stubs:
            find_classes(forward, torch.zeros(12, dtype=torch.int64), stubs)
            return {number: first.number for number, first in stubs.twins.items()}


def capture_all(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program when every layer is traced."""
    with monkeypatch.context() as patch:
        patch.setattr(repeated_layers, "find_layers", lambda *_: {})
        return capture_module(model)


def check_logits(program: Program, model: nn.Module) -> None:
    for length in LENGTHS:
        tokens = random_tokens(length, seed=length, vocab_size=50)
        got = run_program(program, {"tokens": tokens, "positions": torch.arange(length)})
        with torch.no_grad():
            result = model(tokens[None])
        check_close(got, result.logits[0] if hasattr(result, "logits") else result[0], "exact")


@pytest.mark.parametrize(
    ("name", "layers", "expected"),
    [
        ("llama", 4, {1: 0, 2: 0, 3: 0}),
        ("gemma2", 4, {2: 0, 3: 1}),
        ("gpt2", 3, {1: 0, 2: 0}),
        ("opt", 3, {1: 0, 2: 0}),
    ],
)
def test_the_program_is_that_of_tracing_every_layer(
    name: str, layers: int, expected: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name, num_layers=layers)
    assert copies(model) == expected
    program = capture_module(model)
    full = capture_all(model, monkeypatch)
    assert format_graph(program) == format_graph(full)
    origins = [weight.describe() for weight in map(program.weights.__getitem__, program.weights)]
    assert origins == [weight.describe() for weight in map(full.weights.__getitem__, full.weights)]
    modules = [node.meta.get("nn_module_stack") for node in program.graph.nodes]
    assert [_paths(stack) for stack in modules] == [
        _paths(node.meta.get("nn_module_stack")) for node in full.graph.nodes
    ]
    check_logits(program, model)


def _paths(stack: Any) -> list[Any]:
    return list((stack or {}).values())


class Block(nn.Module):
    """Causal attention with one head, and then what a subclass adds."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).split(16, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.add(self.out(mixed))

    def add(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Scaled(Block):
    """Looks at its index."""

    def add(self, x: torch.Tensor) -> torch.Tensor:
        return x / (self.index + 1)


class Alternating(Block):
    """Two kinds, by a function of its own that no attribute tells."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.act = F.relu if index % 2 else F.silu

    def add(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x)


class LongOnly(Block):
    """Looks at its index when the sequence is long, which the traced one is not."""

    def add(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] > 20 + self.index else x


class Named(Block):
    """One of them has an attribute that the others only ask for."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        if index == 2:
            self.special = 3.0

    def add(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3 if hasattr(self, "special") else x


class Remembering(Block):
    """Writes to itself."""

    def add(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = 1
        return x


class InPlace(Block):
    """Writes to its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(self.out(x))


class Leaking(Block):
    """Leaves a tensor where another layer finds it."""

    places: ClassVar[dict[str, torch.Tensor]] = {}

    def add(self, x: torch.Tensor) -> torch.Tensor:
        self.places["last"] = x + self.places["last"] if self.index else x * 1
        return self.places["last"] * 1


class Collecting(Block):
    """Leaves its result where the model finds it."""

    places: ClassVar[list[torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = super().forward(x)
        self.places.append(result)
        return result


class Shared:
    """An object that all layers hold."""

    def __init__(self) -> None:
        self.limit = 64


class Configured(Block):
    """Looks at an object that the model changes between the layers."""

    shared = Shared()

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.config = self.shared

    def add(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] > self.config.limit else x


class Decoder(nn.Module):
    """An embedding, four blocks, a head."""

    def __init__(self, kind: type[Block]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)
        self.blocks = nn.ModuleList(kind(index) for index in range(4))

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.tokens(idx)
        Collecting.places.clear()
        for block in self.blocks:
            x = block(x)
        for extra in Collecting.places:
            x = x + extra
        logits: torch.Tensor = self.head(x)
        return logits


class Changing(Decoder):
    """Changes what the layers look at between them."""

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.tokens(idx)
        for number, block in enumerate(self.blocks):
            Configured.shared.limit = 100 * (number + 1)
            x = block(x)
        logits: torch.Tensor = self.head(x)
        return logits


class Twice(Decoder):
    """Calls one layer again."""

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks[0](super().forward(idx) @ self.head.weight))
        return logits


ALL = {1: 0, 2: 0, 3: 0}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Block, ALL),
        (Alternating, {2: 0, 3: 1}),
        (Named, {1: 0, 3: 0}),
        (Scaled, {}),
        (Remembering, {}),
        (InPlace, {}),
        (Leaking, {}),
        (Collecting, {}),
    ],
)
def test_only_layers_that_do_the_same_are_alike(
    kind: type[Block], expected: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Decoder(kind).eval()
    assert copies(model) == expected
    program = capture_module(model)
    check_logits(program, model)
    assert format_graph(program) == format_graph(capture_all(model, monkeypatch))
    assert {type(block) for block in model.blocks} == {kind}


def test_what_only_long_sequences_would_look_at_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert copies(Decoder(LongOnly)) == {}
    assert copies(Decoder(Configured)) == ALL
    for model in (Decoder(LongOnly), Changing(Configured)):
        _same_outcome(model, monkeypatch)


def _same_outcome(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of capturing give the same graph, for the same lengths, or the same refusal."""
    outcomes: list[tuple[str, Any]] = []
    for capture in (capture_module, lambda m: capture_all(m, monkeypatch)):
        try:
            program = capture(model.eval())
            outcomes.append((format_graph(program), program.info.max_context))
        except FrontendError as error:
            outcomes.append((type(error).__name__, str(error)))
    assert outcomes[0] == outcomes[1]


def test_layers_that_run_twice_have_hooks_or_share_weights_are_traced() -> None:
    assert copies(Twice(Block)) == {2: 1, 3: 1}
    model = Decoder(Block)
    model.blocks[1].get_submodule("out").register_forward_hook(
        lambda module, inputs, result: result * 2
    )
    assert copies(model) == {2: 0, 3: 0}
    model = Decoder(Block)
    tied = model.blocks[2].get_parameter("out.weight")
    model.blocks[1].get_submodule("out").register_parameter("weight", nn.Parameter(tied))
    assert copies(model) == ALL
    model.blocks[1].get_submodule("out").register_parameter("weight", tied)
    assert copies(model) == {3: 0}
    model = Decoder(Block)
    model.blocks[3].out = nn.Linear(16, 16, bias=False)
    assert copies(model) == {1: 0, 2: 0}
    check_logits(capture_module(model), model)
