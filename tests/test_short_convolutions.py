"""Short convolutions along the tokens and token shifts, through the artifact and the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_convolutions import GatedConv, SelfAttention, TokenShift, decoder
from tiny_models import random_tokens
from torch import Tensor, nn
from torch.nn import functional as F

import graphwright
from graphwright.backends.reference.engine import ReferenceEngine
from graphwright.inspector import memory_table, summary
from graphwright.ir import GraphwrightError
from graphwright.ir.tolerance import check_close
from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams

STEPS = 32
GREEDY = SamplingParams(temperature=0.0, max_tokens=STEPS, ignore_eos=True)


def depthwise(taps: int = 4) -> nn.Module:
    return GatedConv(taps, groups=48, padding=taps - 1)


def shift_by_padding(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


def shift_by_joining(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def convolutions() -> nn.Module:
    """Around attention: cut, padded in front and dense, activated before the cut, in groups."""
    return decoder(
        depthwise,
        SelfAttention,
        lambda: GatedConv(3, pad=lambda x: F.pad(x, (2, 0)), cut=lambda x, tokens: x),
        lambda: GatedConv(5, groups=48, padding=4, cut=lambda x, tokens: F.silu(x)[..., :tokens]),
        lambda: GatedConv(2, groups=4, padding=1),
    )


def token_shifts() -> nn.Module:
    """No attention at all."""
    return decoder(lambda: TokenShift(shift_by_padding), lambda: TokenShift(shift_by_joining))


def hybrid_of_transformers() -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "lfm2", vocab_size=128, max_position_embeddings=256, hidden_size=64, intermediate_size=96,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, conv_L_cache=3,
        block_multiple_of=32, layer_types=["conv", "full_attention", "conv"], pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:  # logits that differ clearly from token to token
                    parameter.mul_(8)
    assert isinstance(model, nn.Module)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "convolutions": (convolutions, 4),
    "token-shifts": (token_shifts, 2),
    "hybrid": (hybrid_of_transformers, 2),
}


class Subject:
    """An eager model, what it was compiled to, and its artifact."""

    def __init__(self, name: str, folder: Path) -> None:
        build, self.rolling = MODELS[name]
        self.eager: Any = build()
        self.compiled = graphwright.compile(build(), chunk=16, check=True)
        self.artifact = self.compiled.save(folder / "model.gw")

    def logits(self, tokens: list[int]) -> Tensor:
        """Eager logits [T, V] of one sequence."""
        with torch.no_grad():
            result = self.eager(torch.tensor([tokens]))
        logits: Tensor = getattr(result, "logits", result)[0]
        return logits

    def check_generation(self, prompt: list[int], output: graphwright.Output) -> None:
        """Greedy tokens and the logits behind each of them equal eager's."""
        wanted = self.logits([*prompt, *output.token_ids])[len(prompt) - 1 : -1]
        assert output.logits is not None and len(output.token_ids) == STEPS
        check_close(torch.from_numpy(output.logits.copy()), wanted)
        assert output.token_ids == wanted.argmax(-1).tolist()


@pytest.fixture(scope="module", params=MODELS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(request.param, tmp_path_factory.mktemp(request.param))


def prompt_of(length: int) -> list[int]:
    tokens: list[int] = random_tokens(length, seed=length).tolist()
    return tokens


def test_the_plan_has_a_rolling_state_for_each_convolution(subject: Subject) -> None:
    artifact = Engine(subject.artifact).artifact
    rolling = artifact.json("plan.json")["kv"]["rolling"]
    assert len(rolling) == subject.rolling
    assert all(state["dtype"] == "float32" and state["kept"] >= 1 for state in rolling)
    assert f", {subject.rolling} rolling" in summary(artifact)
    last = rolling[-1]
    shown = f"the last {last['kept']} inputs of {last['channels']} channels, float32"
    assert shown in memory_table(artifact)


@pytest.mark.parametrize("lengths", [(1,), (11,), (13, 1, 7), (2, 45, 16)])
def test_generation_equals_eager(subject: Subject, lengths: tuple[int, ...]) -> None:
    """Prompts shorter than the kernels, ragged batches, prompts of several chunks of 16."""
    prompts = [prompt_of(length) for length in lengths]
    outputs = Engine(subject.artifact).generate(prompts, GREEDY, return_logits=True)
    for prompt, output in zip(prompts, outputs, strict=True):
        subject.check_generation(prompt, output)


def test_chunked_prefill_equals_one_shot(subject: Subject) -> None:
    prompt = prompt_of(45)
    check_close(torch.from_numpy(Engine(subject.artifact).logits(prompt)), subject.logits(prompt))


def test_a_new_sequence_does_not_see_the_one_before_it(subject: Subject) -> None:
    """Cancelled in the midst of its prompt, or of its answer, in the only place there is."""
    engine = Engine(subject.artifact, max_sequences=1)
    for steps in (1, 3, 6):
        request = engine.submit(prompt_of(40), GREEDY)
        for _ in range(steps):
            engine.step()
        engine.cancel(request)
        for length in (1, 2, 9):
            prompt = prompt_of(length)
            (output,) = engine.generate([prompt], GREEDY, return_logits=True)
            subject.check_generation(prompt, output)


def test_int8_weights_equal_their_reference() -> None:
    """Projections are quantized; the kernels of the convolutions stay as they are."""
    compiled = graphwright.compile(hybrid_of_transformers(), quant="w8", chunk=16, check=False)
    prompt = prompt_of(21)
    (output,) = compiled.load().generate([prompt], GREEDY, return_logits=True)
    tokens = torch.tensor([*prompt, *output.token_ids])
    reference = ReferenceEngine(compiled.program)
    wanted = reference.logits_of([tokens], [(len(tokens),)])[0][len(prompt) - 1 : -1]
    assert output.logits is not None
    error = (torch.from_numpy(output.logits.copy()) - wanted).abs().max()
    assert error <= 0.05 * wanted.std()  # a few activations on the border of two integers


def centred(taps: int = 3) -> nn.Module:
    return GatedConv(taps, groups=48, padding=taps // 2)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "centred": (centred, "is not causal: it reads 1 tokens ahead"),
    "same": (
        lambda: GatedConv(5, groups=48, padding="same"),
        "is not causal: it reads 2 tokens ahead",
    ),
    "grouped": (lambda: GatedConv(3, groups=24, padding=2), "works in 24 groups of 2 channels"),
    "next token": (
        lambda: TokenShift(lambda x: F.pad(x, (0, 0, -1, 1))),
        "is not causal: it reads 1 tokens ahead",
    ),
    "last token first": (lambda: TokenShift(lambda x: torch.roll(x, 1, 1)), "token"),
    "uncut": (
        lambda: GatedConv(
            3, groups=48, padding=2, cut=lambda x, n: x[..., :n] - x.mean(-1, keepdim=True)
        ),
        r"uses all T \+ 2 elements of 'conv1d",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_is_refused(name: str) -> None:
    layer, reason = REFUSED[name]
    with pytest.raises(GraphwrightError, match=reason):
        graphwright.compile(decoder(layer), check=False)


def test_a_stride_is_refused() -> None:
    """Two tokens become one row, and are repeated."""
    layer = GatedConv(
        2, groups=48, stride=2,
        pad=lambda x: F.pad(x, (1, 1)),
        cut=lambda x, tokens: x.repeat_interleave(2, dim=-1)[..., :tokens],
    )  # fmt: skip
    with pytest.raises(GraphwrightError, match="stride 2: it gives no row"):
        graphwright.compile(decoder(lambda: layer), check=False)
