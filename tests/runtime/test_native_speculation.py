"""Guessed tokens over compiled code: guesses that are right and wrong anywhere change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from indexed_decoders import indexed_model
from recurrent_decoders import recurrent_model
from shared_data import shared_path
from tiny_models import random_tokens, tiny_model

import graphwright
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.speculation import Drafter, LookupSpeculator
from graphwright.runtime.steps import Sequence

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
GREEDY = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
DRAWN = SamplingParams(temperature=1, seed=4, max_tokens=50, ignore_eos=True)


class Knowing(Drafter):
    """Guesses what the sequence will say, and something else for one token in five."""

    def __init__(self, tokens: list[int], will_say: list[int], random: Random) -> None:
        super().__init__(tokens)
        self._all, self._random = will_say, random

    def look(self) -> float:
        return self._random.choice((0.01, 0.3, 0.99))

    def draft(self, length: int) -> list[int]:
        following = self._all[len(self._tokens) :][:length]
        return [(token + 1) % 128 if self._random.random() < 0.2 else token for token in following]


def guess_by(engine: Engine, said: dict[tuple[int, ...], list[int]], seed: int) -> None:
    """From now on the engine's guesses are those of Knowing: said[prompt] is what follows it."""
    speculator = engine._stepper._speculator
    assert isinstance(speculator, LookupSpeculator)
    random, drafters = Random(seed), dict[Sequence, Drafter]()

    def drafter(sequence: Sequence) -> Drafter:
        if sequence not in drafters:
            prompt = sequence.tokens[: sequence.prompt_length]
            will_say = [*prompt, *said[tuple(prompt)]]
            drafters[sequence] = Knowing(sequence.tokens, will_say, random)
        return drafters[sequence]

    speculator._drafter = drafter  # type: ignore[method-assign]


def prompts() -> list[list[int]]:
    return [random_tokens(length, seed=length).tolist() for length in (1, 8, 40, 5, 23)]


@pytest.mark.parametrize(
    ("model", "options", "tolerance"),
    [
        ("llama", {}, 1e-5),
        ("mistral", {}, 1e-5),  # a window of 8 tokens: blocks behind it are the sequence's still
        ("gemma2", {}, 1e-5),
        ("deepseek-v3", {}, 1e-5),
        ("indexed", {}, 1e-5),
        ("llama", {"kv_cache_dtype": "int8"}, 0.03),
    ],
    ids=[
        "llama",
        "windows",
        "windows in some layers",
        "latent attention",
        "chosen keys",
        "int8 cache",
    ],
)
def test_wrong_guesses_leave_nothing_behind(
    model: str, options: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    """Several sequences at once, prompts in chunks beside them, the prefix cache on. Rounding may
    turn a token of ten sequences, as any other company does; what follows it is another text."""
    eager = indexed_model() if model == "indexed" else tiny_model(model)
    compiled = graphwright.compile(eager, chunk=16, check=False, **options)
    path = compiled.save(tmp_path / "m.gw")
    plain = Engine(path, max_sequences=3, context=96)
    engine = Engine(path, max_sequences=3, context=96, speculate="lookup", prefix_cache=True)
    equal = 0
    for seed, params in enumerate((GREEDY, DRAWN)):
        expected = plain.generate(prompts(), params, return_logits=True)
        said = {tuple(p): e.token_ids for p, e in zip(prompts(), expected, strict=True)}
        guess_by(engine, said, seed)
        found = engine.generate(prompts(), params, return_logits=True)
        for one, other in zip(expected, found, strict=True):
            assert one.logits is not None and other.logits is not None
            pairs = zip(one.token_ids, other.token_ids, strict=True)
            turned = next((i for i, (mine, its) in enumerate(pairs) if mine != its), None)
            equal += turned is None
            until = None if turned is None else turned + 1
            error = np.abs(one.logits[:until] - other.logits[:until]).max()
            assert error <= tolerance * np.abs(one.logits).max()
    assert equal >= (9 if tolerance < 1e-3 else 6)
    counts = engine.statistics
    assert counts.accepted_tokens > 100 and counts.drafted_tokens - counts.accepted_tokens > 50


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo model in float32."""
    path = tmp_path_factory.mktemp("demo") / "demo.gw"
    return graphwright.compile(DEMO, quant="f32", check=False).save(path)


STORY = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she lost "
    'the red ball. Lily said, "Where is my red ball?" Her mom said, "'
)


def test_a_trained_model_writes_the_same_text(demo: Path) -> None:
    plain = Engine(demo, max_sequences=4)
    engine = Engine(demo, max_sequences=4, speculate="lookup", prefix_cache=True)
    texts = ["Once upon a time", "Tom and Sue saw a dog. Tom and Sue saw", STORY, "One day"]
    for params in (
        SamplingParams(temperature=0, max_tokens=150),
        SamplingParams(temperature=0.8, seed=7, max_tokens=150),
        SamplingParams(temperature=0, repetition_penalty=1.1, max_tokens=60),
        SamplingParams(temperature=0, max_tokens=99, stop=(" to", "mom ")),
    ):
        expected, found = plain.generate(texts, params), engine.generate(texts, params)
        assert [each.text for each in found] == [each.text for each in expected]
        assert [each.token_ids for each in found] == [each.token_ids for each in expected]
        assert [each.finish_reason for each in found] == [e.finish_reason for e in expected]
    assert engine.statistics.accepted_tokens > 20


@pytest.mark.shared
def test_stories260k_gives_its_golden_tokens_in_fewer_steps(tmp_path: Path) -> None:
    model = shared_path("models/stories260K-hf")
    golden = json.loads(shared_path("data/models/stories260K.greedy.json").read_text())
    path = graphwright.compile(model, check=False).save(tmp_path / "s.gw")
    engine = Engine(path, speculate="lookup", max_sequences=1)
    [output] = engine.generate([[1]], SamplingParams(temperature=0, max_tokens=256))
    assert [1, *output.token_ids] == golden["token_ids"]
    assert engine.statistics.accepted_tokens > 5


def test_a_recurrent_model_is_refused(tmp_path: Path) -> None:
    path = graphwright.compile(recurrent_model("mamba"), check=False).save(tmp_path / "m.gw")
    with pytest.raises(RequestError, match=r"recurrent or rolling states.*Leave speculate out"):
        Engine(path, speculate="lookup")
