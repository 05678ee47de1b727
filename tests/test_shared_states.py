"""Compiled models with states, in conversations in any order: they go on where a text is known.

What is said equals eager, token for token and logit for logit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recurrent_decoders import recurrent_model
from short_convolutions import GatedConv, SelfAttention, decoder
from tiny_models import random_tokens
from torch import Tensor, nn

import graphwright
from graphwright.ir.tolerance import check_close
from graphwright.runtime.engine import Engine
from graphwright.runtime.request import Output
from graphwright.runtime.sampling_params import SamplingParams

CHUNK, CONTEXT = 32, 256


def short_convolutions() -> nn.Module:
    """Attention between short convolutions, whose states lie in the first block."""
    return decoder(
        lambda: GatedConv(4, groups=48, padding=3), SelfAttention,
        lambda: GatedConv(3, groups=48, padding=2),
    )  # fmt: skip


MORE = ["falcon_h1", "recurrent_gemma", "xlstm", "qwen3_next", "mamba2"]
NAMES = [
    "short convolutions", "mamba", "qwen3_5_text",
    *(pytest.param(name, marks=pytest.mark.slow) for name in MORE),
]  # fmt: skip


class Subject:
    """An eager model and the artifact that it was compiled to."""

    def __init__(self, name: str, folder: Path) -> None:
        build = short_convolutions if name == "short convolutions" else None
        self.eager: Any = build() if build else recurrent_model(name)
        compiled = graphwright.compile(
            build() if build else recurrent_model(name), chunk=CHUNK, check=False
        )
        self.artifact = compiled.save(folder / "model.gw")

    def logits(self, tokens: list[int]) -> Tensor:
        """Eager logits [T, V] of one sequence, without a cache."""
        with torch.no_grad():
            result = self.eager(torch.tensor([tokens]))
        logits: Tensor = getattr(result, "logits", result)[0]
        return logits

    def check(self, prompt: list[int], output: Output) -> None:
        wanted = self.logits([*prompt, *output.token_ids])[len(prompt) - 1 : -1]
        assert output.logits is not None
        check_close(torch.from_numpy(output.logits.copy()), wanted)
        assert output.token_ids == wanted.argmax(-1).tolist()


@pytest.fixture(scope="module", params=NAMES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(request.param, tmp_path_factory.mktemp("states"))


def ids(length: int, seed: int) -> list[int]:
    tokens: list[int] = random_tokens(length, seed=seed).tolist()
    return tokens


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def say(engine: Engine, prompt: list[int], tokens: int) -> tuple[int, Output]:
    """(positions that were not computed again, what is said)."""
    request = engine._request(prompt, greedy(tokens), True, None)
    engine._stepper.add(request)
    while not request.finished:
        engine.step()
    return request.sequence.reused, request.output()


def test_each_turn_goes_on_behind_the_last_one(subject: Subject) -> None:
    engine = Engine(subject.artifact, max_sequences=2, context=CONTEXT, prefix_cache=True)
    text = ids(45, seed=1)
    for turn in range(5):
        begun, output = say(engine, text, 7)
        assert begun == (len(text) - 10 if turn else 0)
        subject.check(text, output)
        say(engine, ids(50, seed=turn + 10), 3)  # somebody else, in the same memory
        text = [*text, *output.token_ids, *ids(9, seed=turn)]


def test_common_instructions(subject: Subject) -> None:
    engine = Engine(subject.artifact, max_sequences=4, context=CONTEXT, prefix_cache=True)
    instructions = ids(100, seed=3)
    begun = []
    for seed in range(4):
        prompt = [*instructions, *ids(40, seed=seed + 20)]
        reused, output = say(engine, prompt, 4)
        subject.check(prompt, output)
        begun.append(reused)
    assert begun == [0, 0, 96, 96]


def test_many_conversations_in_any_order(subject: Subject) -> None:
    """Up to three at a time, with fewer snapshots than there are texts; some are cancelled."""
    engine = Engine(
        subject.artifact, max_sequences=3, context=CONTEXT, prefix_cache=True, snapshots=5
    )
    draw = np.random.default_rng(0)
    texts = [ids(int(draw.integers(1, 80)), seed=seed % 3) for seed in range(6)]
    reused = 0
    for turn in range(8):
        chosen = draw.permutation(6)[: int(draw.integers(1, 5))].tolist()
        prompts = {
            each: [*texts[each], *ids(int(draw.integers(1, 20)), seed=turn)] for each in chosen
        }
        gone = engine.submit([*texts[0], *ids(30, seed=turn + 50)], greedy(9))
        for _ in range(int(draw.integers(1, 5))):
            engine.step()
        engine.cancel(gone)
        outputs = engine.generate(list(prompts.values()), greedy(5), return_logits=True)
        for each, output in zip(chosen, outputs, strict=True):
            subject.check(prompts[each], output)
            texts[each] = [*prompts[each], *output.token_ids][: CONTEXT - 60]
        reused += gone.sequence.reused
    assert reused > 0
    assert engine._pool.free == engine._pool.blocks


def test_the_same_chunks_give_the_same_bits(subject: Subject) -> None:
    """Computed from the start, a prompt is cut where it was cut when the snapshot was taken."""
    prompt = ids(CHUNK + 2 * 16 + 10, seed=5)  # near its end: where a block ends
    engine = Engine(subject.artifact, max_sequences=1, context=CONTEXT, prefix_cache=True)
    (begun, first), (again, second) = say(engine, prompt, 6), say(engine, prompt, 6)
    assert (begun, again) == (0, CHUNK + 2 * 16)
    assert first.token_ids == second.token_ids
    assert first.logits is not None and second.logits is not None
    np.testing.assert_array_equal(first.logits, second.logits)
