"""Models that carry states become recurrences over tokens, however they keep them; what cannot be
said of one is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from recurrent_models import (
    WIDTH,
    Attributes,
    Decoder,
    Dictionary,
    Gated,
    InModules,
    Items,
    Keeper,
    Mixer,
    Outer,
    Tuples,
    check_capture,
    scans,
    steps_of,
)
from torch import Tensor, nn
from torch.nn import functional as F

from graphwright.frontend import capture_module
from graphwright.ir import FrontendError, format_graph

gw = torch.ops.gw


@pytest.mark.parametrize("keeper", [Keeper, Attributes, Dictionary, Tuples, InModules, Items])
def test_states_are_found_wherever_they_are_kept(keeper: Any) -> None:
    program = check_capture(Decoder(keeper=keeper))
    assert [step.states[0].sizes for step in steps_of(program)] == [(WIDTH,), (WIDTH,)]
    assert not any("graphwright_states" in str(node.target) for node in program.graph.nodes)


def test_the_program_of_a_gated_sum() -> None:
    """Products with weights are computed for all tokens at once; the step is what is left."""
    text = format_graph(check_capture(Decoder(layers=1)))
    begin = text.index("%scan_along_tokens_1")
    assert (
        text[begin : text.index("%slice_2", begin)]
        == """\
%scan_along_tokens_1 : f32[T, 12] = gw.scan_along_tokens([%sigmoid_1, %mul_1], [])
  | %state_0 : f32[1, 12] = input
  | %row_1 : f32[1, 12] = input
  | %row_2 : f32[1, 12] = input
  | %mul_1 : f32[1, 12] = aten.mul.Tensor(%row_1, %state_0)
  | %add_1 : f32[1, 12] = aten.add.Tensor(%mul_1, %row_2)
  | return (%add_1, %add_1)
"""
    )


class Chain(Mixer):
    """The second state sums up what the first one was."""

    sizes = ((WIDTH,), (WIDTH,))

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        first = 0.5 * states[0] + x
        second = 0.9 * states[1] + self.gate(x).sigmoid() * first
        return self.out(second), first, second


class Circle(Mixer):
    """Each state needs the other one of the token before."""

    sizes = ((WIDTH,), (WIDTH,))

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        first = 0.5 * states[1] + x
        second = 0.9 * states[0].tanh() + self.gate(x).sigmoid()
        return self.out(first * second), first, second


class RunningMaximum(Mixer):
    """A sum of exponentials, and what it is scaled by, which starts with almost nothing."""

    sizes = ((WIDTH,), (WIDTH,))
    start = -1e4

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        top = torch.maximum(states[0], self.gate(x))
        total = states[1] * torch.exp(states[0] - top) + torch.exp(x - top)
        return self.out(total.clamp(-5, 5) + top), top, total


class TwoStarts(Mixer):
    """States that need each other and start with different numbers."""

    sizes = ((WIDTH,), (WIDTH,))

    def initial(self, batch: int) -> list[Tensor]:
        return [torch.full((batch, WIDTH), 0.5), torch.ones(batch, WIDTH)]

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        first = 0.5 * states[1] + x
        second = 0.9 * states[0]
        return self.out(first * second), first, second


class Window(Mixer):
    """A causal convolution over a window of the last three values, weighed by each channel."""

    sizes = ((WIDTH, 3),)

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.taps = nn.Parameter(torch.zeros(WIDTH, 3))

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        new = torch.cat([states[0][:, :, 1:], self.gate(x)[:, :, None]], -1)
        return self.out((new * self.taps).sum(-1)), new


class Last(Mixer):
    """The new state needs no old one, and is a product."""

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        return self.out(states[0] * x), self.gate(x)


class LastTwo(Mixer):
    """The second state is what the first one was."""

    sizes = ((WIDTH,), (WIDTH,))

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        return self.out(states[0] * x + states[1]), self.gate(x), states[0]


class Through(Mixer):
    """Something narrow is made of the state and of a product of the state: both cannot be inside,
    where there are no products for all tokens at once."""

    sizes = ((WIDTH, 6),)

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        new = states[0] * 0.5 + x[..., None] * self.gate(x)[..., None, :6]
        return (new * self.out(new[..., 0])[..., None]).mean(-1), new


class SharedKey(Mixer):
    """What is worth computing in one step is read by another one; the result needs both states."""

    sizes = ((3, 4, 5), (3, 4))

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.up = nn.Linear(15, WIDTH)

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        key = self.gate(x).reshape(-1, 1, 12)[:, :, :4].expand(-1, 3, 4).reshape(-1, 3, 4)
        value = self.out(x)[:, None, :5]
        new = states[0] * 0.9 + key[..., None] * value[:, :, None]
        total = states[1] * 0.8 + key.abs()
        y = ((key / (1.0 + total))[..., None] * new).sum(-2)
        return self.up(y.flatten(1)), new, total


class Rounded(Gated):
    """Computes in another type, keeps float32."""

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        y, new = super().step(x.double(), states[0].double())
        return y.float(), new.float()

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.gate, self.out = nn.Identity(), nn.Tanh()  # type: ignore[assignment]


MIXERS: dict[str, tuple[Callable[[int], nn.Module], Any, list[list[float]]]] = {
    # by name: what is built, who keeps its states, and what those of each recurrence start with
    "one after the other": (Chain, Keeper, [[0.0], [0.0]]),
    "in a circle": (Circle, Keeper, [[0.0, 0.0]]),
    "other numbers": (RunningMaximum, Items, [[-1e4], [-1e4]]),
    "different numbers": (TwoStarts, Items, [[0.5, 1.0]]),
    "heads": (Outer, Keeper, [[0.0]]),
    "a window": (Window, Keeper, [[0.0]]),
    "no old state": (Last, Keeper, [[0.0]]),
    "the last but one": (LastTwo, Keeper, [[0.0], [0.0]]),
    "a product in between": (Through, Keeper, [[0.0]]),
    "a key for two": (SharedKey, Keeper, [[0.0], [0.0]]),
    "double": (Rounded, Keeper, [[0.0]]),
}


@pytest.mark.parametrize("name", MIXERS)
def test_states_of_all_kinds(name: str) -> None:
    mixer, keeper, starts = MIXERS[name]
    program = check_capture(Decoder(mixer, layers=1, keeper=keeper))
    found = [[state.initial for state in step.states] for step in steps_of(program)]
    assert found == starts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_the_size(dtype: torch.dtype) -> None:
    """All is computed in float32; states are made in the weights' type."""

    class Typed(Outer):
        def initial(self, batch: int) -> list[Tensor]:
            return [torch.zeros(batch, *self.sizes[0], dtype=self.gate.weight.dtype)]

    program = check_capture(Decoder(Typed).to(dtype))
    assert len(scans(program)) == 2


class SumsTheBatch(Gated):
    """Its states of one sequence depend on others that run beside it."""

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        y, new = super().step(x, *states)
        return y, 0.5 * new + 0.2 * new.mean(0, keepdim=True)


def test_states_that_look_at_a_batch_have_one_of_one_sequence() -> None:
    """Tokens beside each other are sequences; those of one sequence are no batch."""
    assert len(scans(check_capture(Decoder(SumsTheBatch)))) == 2


# ---- what modules are given and what they return


class Given(Gated):
    """Takes something beside the stream, in `mix` of GivesMore."""

    def forward(self, x: Tensor, cache: Any = None, more: Any = None) -> Any:
        if isinstance(more, tuple):
            x = x * more[0] + more[1]
        elif more is not None:
            x = x + more
        return super().forward(x, cache)


class GivesMore(Decoder):
    """`given` says what its mixers get beside the stream."""

    def __init__(self, given: Callable[[Tensor], Any], mixers: Any = Given) -> None:
        super().__init__(mixers)
        self.given = given

    def forward(self, input_ids: Tensor, kept: Any = None, use_cache: bool = False) -> Any:
        self.seen = len(self.table.weight) * 0 if kept is None else kept.seen
        result = super().forward(input_ids, kept, use_cache)
        if use_cache:
            result["kept"].seen = self.seen + input_ids.shape[1]
        return result

    def mix(self, layer: nn.Module, h: Tensor, cache: Any) -> Any:
        positions = torch.arange(self.seen, self.seen + h.shape[1])[None]
        return layer(h, cache, more=self.given(positions))


def waves(positions: Tensor) -> Tensor:
    """[B, T, WIDTH]"""
    return torch.sin(positions[..., None] * torch.arange(1, WIDTH + 1) * 0.1)


GIVEN: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda positions: None,
    "positions": lambda positions: positions[..., None] * 0.1,
    "position embeddings of batch 1": waves,
    "a pair of them": lambda positions: (waves(positions).cos(), waves(positions)),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_modules_are_given_beside_the_stream(name: str) -> None:
    assert len(scans(check_capture(GivesMore(GIVEN[name])))) == 2


class Masked(Gated):
    """Forgets what a mask of padding says, as long as there is more than one token."""

    def forward(self, x: Tensor, cache: Any = None, more: Any = None) -> Any:
        return super().forward(x if more is None else x * more[..., None], cache)


def test_a_mask_that_only_sequences_have() -> None:
    def mask(positions: Tensor) -> Any:
        return torch.ones_like(positions) if positions.shape[1] > 1 else None

    assert len(scans(check_capture(GivesMore(mask, Masked)))) == 2


class InTuple(Gated):
    def forward(self, x: Tensor, cache: Any = None) -> Any:
        return super().forward(x, cache), None


class InMapping(Gated):
    def forward(self, x: Tensor, cache: Any = None) -> Any:
        return {"index": self.index, "stream": super().forward(x, cache)}


@pytest.mark.parametrize("mixer", [InTuple, InMapping])
def test_results_that_are_more_than_a_tensor(mixer: Any) -> None:
    assert len(scans(check_capture(Decoder(mixer)))) == 2


class Both(Decoder):
    """Recurrences and attention, whose keys and values grow in a cache of transformers' own."""

    def __init__(self) -> None:
        super().__init__(layers=2)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(
        self, input_ids: Tensor, kept: Any = None, use_cache: bool = False,
        past_key_values: Any = None,
    ) -> Any:  # fmt: skip
        from transformers import DynamicCache

        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        self.past = past_key_values if use_cache else None
        result = super().forward(input_ids, kept, use_cache)
        if use_cache:
            result["past_key_values"] = past_key_values
        return result

    def mix(self, layer: nn.Module, h: Tensor, cache: Any) -> Any:
        query, key, value = (part[:, None] for part in self.qkv(h).chunk(3, -1))
        if self.past is not None:
            key, value = self.past.update(key, value, layer.mixer.index)
        causal = self.past is None or h.shape[1] > 1
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return layer(h, cache) + attended.squeeze(1)


def test_attention_beside_recurrences() -> None:
    program = check_capture(Both())
    assert len(scans(program)) == 2


# ---- what is refused


class CalledTwice(Decoder):
    def mix(self, layer: nn.Module, h: Tensor, cache: Any) -> Any:
        return layer(layer(h, cache), cache)


class MixesTheBatch(Gated):
    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        y, new = super().step(x, *states)
        return y + x.mean(0), new


class Contradicts(Gated):
    """Twice as much for a single token."""

    def forward(self, x: Tensor, cache: Any = None) -> Any:
        return super().forward(x, cache) * (2.0 if x.shape[1] == 1 else 1.0)


class Sorts(Gated):
    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        new = states[0].sort(-1).values * 0.5 + x
        return self.out(new), new


class Counts(Gated):
    """A running sum inside of the state."""

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        new = states[0].cumsum(-1) * 0.1 + x
        return self.out(new), new


class HalfStates(Gated):
    """Keeps bfloat16."""

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        y, new = super().step(x, states[0].float())
        return y, new.bfloat16()


class NeedsValues(Gated):
    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        y, new = super().step(x, *states)
        return (y if bool(new.sum() > 0) else -y), new


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "called twice": (CalledTwice, "'layers.0.mixer' carries states and is called several times"),
    "results of the batch": (lambda: Decoder(MixesTheBatch), "that trace is wrong for 2"),
    "contradicts": (
        lambda: Decoder(Contradicts),
        r"'layers.0.mixer' \(Contradicts\) gives other values token by token, as it decodes, than "
        r"for a whole sequence: the largest difference is",
    ),
    "an unknown start": (
        lambda: Decoder(RunningMaximum),
        r"'layers.0.mixer' \(RunningMaximum\) gives other values token by token",
    ),
    "sort": (lambda: Decoder(Sorts), "aten.sort.default.*which no step can hold.*states.0..sort"),
    "cumsum": (lambda: Decoder(Counts), "aten.cumsum.default.*which no step can hold"),
    "bfloat16": (lambda: Decoder(HalfStates), "a state of torch.bfloat16, not of float32"),
    "a branch by values": (lambda: Decoder(NeedsValues), "cannot be traced for a variable"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    build, reason = REFUSED[name]
    with pytest.raises(FrontendError, match=reason):
        capture_module(build(), max_context=64)


class WithoutCache(Decoder):
    """Loops over the tokens, and keeps nothing of them."""

    def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
        return super().forward(input_ids)


class ForgetsStates(Decoder):
    """Takes a cache, and does not return it."""

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:  # type: ignore[override]
        return super().forward(input_ids)


@pytest.mark.parametrize("model", [WithoutCache, ForgetsStates])
def test_recurrences_of_modules_that_keep_no_state_are_refused(model: Any) -> None:
    with pytest.raises(FrontendError) as error:
        capture_module(model(), max_context=64)
    text = str(error.value)
    assert (
        f"{model.__name__} is recurrent: 'layers.0.mixer' (Gated) computes a state [1, 12]" in text
    )
    assert "in 13 steps for 6 tokens and in 25 for 12" in text
    assert text.endswith(
        "A recurrence is compiled where the model decodes with a cache that holds its state, which "
        "this one could not be seen to do."
    )


# ---- layers that are alike


class Indexed(Gated):
    """Its index is more than where its state lies."""

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        return super().step(x * (1.0 + self.index), *states)


def traced_layers(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many mixers are run while `model` is exported."""
    from graphwright.frontend import repeated_layers

    export: Any = vars(repeated_layers)["export_dynamic"]
    counts: list[int] = []

    def counting(*args: Any) -> Any:
        calls: set[int] = set()
        kind: Any = type(model.layers[0].mixer)
        step = kind.step

        def noted(mixer: Any, *given: Any) -> Any:
            calls.add(id(vars(mixer)))
            return step(mixer, *given)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "step", noted)
            result = export(*args)
        counts.append(len(calls))
        return result

    monkeypatch.setattr(repeated_layers, "export_dynamic", counting)
    program = check_capture(model, lengths=(5,))
    assert len(scans(program)) == len(model.layers)
    return counts[-1]


@pytest.mark.parametrize(
    ("mixer", "keeper", "traced"),
    [(Gated, Keeper, 1), (Gated, Attributes, 1), (Outer, Dictionary, 1), (Indexed, Keeper, 4)],
)
def test_layers_that_are_alike_are_traced_once(
    mixer: Any, keeper: Any, traced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds its state by its own index; who computes with the index is not like others."""
    assert traced_layers(Decoder(mixer, 4, keeper), monkeypatch) == traced
