"""Checkpoints of several architectures, from a directory to an artifact, against transformers.

Everything goes through the file and the engine: prefill, 32 decode steps, a ragged batch of three,
chunked against one-shot prefill; in float32 against eager, in int8 against the reference of the
quantized graph. Architectures are named here and nowhere in the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MORE_MODELS, TINY_MODELS, random_tokens, save_tiny
from transformers import AutoModelForCausalLM

import graphwright
from graphwright.backends.reference.engine import ReferenceEngine
from graphwright.ir.tolerance import check_close
from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams

STEPS = 32
GREEDY = SamplingParams(temperature=0.0, max_tokens=STEPS, ignore_eos=True)


@dataclass
class Subject:
    """A checkpoint run by transformers, and the path of its artifact."""

    eager: Any
    checkpoint: Path
    artifact: Path

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Eager logits [T, V] of one sequence."""
        with torch.no_grad():
            result: torch.Tensor = self.eager(torch.tensor([tokens]), use_cache=False).logits[0]
        return result

    def check_generation(self, prompt: list[int], output: graphwright.Output) -> None:
        """Greedy tokens and the logits behind each of them equal eager's."""
        wanted = self.logits([*prompt, *output.token_ids])[len(prompt) - 1 : -1]
        assert output.logits is not None
        check_close(torch.from_numpy(output.logits.copy()), wanted)
        assert output.token_ids == wanted.argmax(-1).tolist()


# Run every time, one for each structure: of positions (learned, offset, rotary and its scalings,
# ALiBi), of attention (grouped, windows, softcaps, sinks, latent), of experts, of norms and of
# residuals. The others are marked slow.
EVERY_TIME = frozenset(
    {
        "bloom", "cohere", "deepseek-v3", "falcon-old", "gemma2", "gemma3", "gpt-neox", "gpt-oss",
        "gpt2", "llama", "llama, dynamic", "llama, longrope", "mistral", "olmo2", "opt", "phi3",
        "qwen3-moe", "stablelm, parallel",
    }
)  # fmt: skip
SUBJECTS = [
    pytest.param(name, marks=[] if name in EVERY_TIME else [pytest.mark.slow])
    for name in sorted({**TINY_MODELS, **MORE_MODELS})
]


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("model")
    checkpoint = save_tiny(request.param, folder / "checkpoint")
    compiled = graphwright.compile(checkpoint, chunk=16, check=False)
    eager = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    return Subject(eager, checkpoint, compiled.save(folder / "model.gw"))


def prompt_of(length: int, seed: int) -> list[int]:
    tokens: list[int] = random_tokens(length, seed=seed).tolist()
    return tokens


def test_prefill_and_decode_equal_eager(subject: Subject) -> None:
    prompt = prompt_of(11, seed=1)
    output = Engine(subject.artifact).generate([prompt], GREEDY, return_logits=True)[0]
    assert len(output.token_ids) == STEPS
    subject.check_generation(prompt, output)


def test_a_ragged_batch_of_three_equals_eager(subject: Subject) -> None:
    prompts = [prompt_of(length, seed=length) for length in (13, 1, 7)]
    outputs = Engine(subject.artifact).generate(prompts, GREEDY, return_logits=True)
    for prompt, output in zip(prompts, outputs, strict=True):
        subject.check_generation(prompt, output)


def test_chunked_prefill_equals_one_shot(subject: Subject) -> None:
    """Chunks of at most 16 tokens here; transformers reads all 45 at once."""
    prompt = prompt_of(45, seed=3)
    got = torch.from_numpy(Engine(subject.artifact).logits(prompt))
    check_close(got, subject.logits(prompt))


# An activation that falls on the boundary between two integers may round either way: then one of
# some hundred products of a row differs by 1 / 127, in that token and in those that attend to it.
# All other rows agree to float32 rounding.
# A token that rounds early in one of the three sequences takes a third of the rows with it, and
# activations with a scale for each group of 32 have more values that are large for their scale.
IN_GROUPS = 0.4
# Attention over int8 keys rounds queries and weights to 2^-16 of the largest: a hundred times more
# than float32, so that more of what the next layer appends falls on the other side of a boundary.
INT8_CACHE = 0.4
ROUNDED = 0.1  # of the logits' standard deviation, as for passes that approximate
EQUAL = 1e-3
# A token for which two experts are about as good may then go to the other one, and that token alone
# differs by more: so many of 96 may.
REROUTED = 2


def check_quantized(
    subject: Subject, quant: str, folder: Path, share: float, cache: str = "auto"
) -> None:
    """The artifact against the reference of the quantized graph; `share` of the rows are equal.

    cache: how keys and values are kept.
    """
    compiled = graphwright.compile(
        subject.checkpoint, quant=quant, kv_cache_dtype=cache, chunk=16, check=False
    )
    prompts = [prompt_of(length, seed=length) for length in (21, 1, 7)]
    engine = Engine(compiled.save(folder / "model.gw"))
    outputs = engine.generate(prompts, GREEDY, return_logits=True)
    sequences = [[*p, *o.token_ids] for p, o in zip(prompts, outputs, strict=True)]
    reference = ReferenceEngine(compiled.program)
    chunks = [[len(sequence) for sequence in sequences]]
    found = reference.logits_of([torch.tensor(sequence) for sequence in sequences], chunks)
    routes = any("routed" in str(node.target) for node in compiled.program.graph.nodes)
    equal, rerouted = [], 0
    for prompt, output, logits in zip(prompts, outputs, found, strict=True):
        wanted = logits[len(prompt) - 1 : -1]
        assert output.logits is not None
        error = (torch.from_numpy(output.logits.copy()) - wanted).abs().amax(-1)
        rerouted += int((error > ROUNDED * wanted.std()).sum())
        equal.append(error <= EQUAL * wanted.std())
        top = wanted.topk(2, dim=-1).values
        clear = top[:, 0] - top[:, 1] > 2 * error
        assert wanted.argmax(-1)[clear].tolist() == torch.tensor(output.token_ids)[clear].tolist()
    assert rerouted <= (REROUTED if routes else 0)
    assert torch.cat(equal).float().mean() > share


def test_int8_weights_equal_their_reference(subject: Subject, tmp_path: Path) -> None:
    check_quantized(subject, "w8", tmp_path, 0.7)


@pytest.mark.parametrize("subject", ["llama", "gemma2", "qwen3-moe"], indirect=True)
def test_4_bit_weights_equal_their_reference(subject: Subject, tmp_path: Path) -> None:
    check_quantized(subject, "w4g32:embed=w4g32z,down_proj=w8g32", tmp_path, IN_GROUPS)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["w8g32", "w4g32", "w4g32z"])
def test_every_scheme_equals_its_reference(subject: Subject, quant: str, tmp_path: Path) -> None:
    check_quantized(subject, quant, tmp_path, IN_GROUPS)


# Windows and a cap on the scores; keys and values of different sizes from one latent.
@pytest.mark.parametrize("subject", ["gemma2", "deepseek-v3"], indirect=True)
def test_an_int8_cache_equals_its_reference(subject: Subject, tmp_path: Path) -> None:
    check_quantized(subject, "f32", tmp_path, INT8_CACHE, "int8")


CACHED = """llama mistral gpt2 falcon falcon-old opt bloom qwen3 gemma3 phi gpt-neox cohere gpt-oss
    mixtral""".split()


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["int8", "f16"])
@pytest.mark.parametrize("subject", CACHED, indirect=True)
def test_a_small_cache_equals_its_reference(subject: Subject, cache: str, tmp_path: Path) -> None:
    check_quantized(subject, "f32", tmp_path, INT8_CACHE if cache == "int8" else 0.7, cache)
