"""Bit for bit the same, alone and in any company: by scheduling, and by what kernels add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexed_decoders import indexed_model
from late_toy import LateToy
from recurrent_decoders import RECURRENT, recurrent_model
from tiny_models import random_tokens, tiny_model
from toy_model import ToyLibrary, toy_engine, toy_greedy, write_toy

import graphwright
from graphwright.runtime.cpu import cpu_features
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.sampling_params import SamplingParams

CHUNK = 32
# (model, what is special, recipe, cache): one prompt of three chunks, one that is a single token
CASES = [
    ("llama", {"max_position_embeddings": 512}, "w8", "auto", "host"),
    ("llama", {}, "w4g32", "auto", "host"),
    ("llama", {}, "w8", "auto", "x86-64-v3"),
    ("llama", {}, "w4g32z", "int8", "x86-64-v3"),
    ("gemma2", {}, "w8g32", "f16", "host"),
    ("mixtral", {}, "w8", "auto", "host"),
    ("mamba", {}, "w8", "auto", "host"),
    ("qwen3_next", {}, "w8", "auto", "host"),
    ("indexed", {}, "w8", "auto", "host"),
]
LENGTHS = (5, 70, 1, 33, 12, 64, 3, 40, 9, 2, 65)
LONG = 300  # tokens, whose keys are cut into segments when it decodes


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


@pytest.mark.parametrize(("name", "config", "quant", "cache", "target"), CASES)
def test_logits_are_the_same_bits_alone_and_in_company(
    name: str, config: dict[str, Any], quant: str, cache: str, target: str, tmp_path: Path
) -> None:
    if target != "host" and "avx2" not in cpu_features():
        pytest.skip(f"this CPU does not run {target}")
    path, make = tmp_path / "model.gw", recurrent_model if name in RECURRENT else tiny_model
    model = indexed_model() if name == "indexed" else make(name, **config)
    graphwright.compile(
        model, quant=quant, kv_cache_dtype=cache, target=target, chunk=CHUNK,
        check=False,
    ).save(path)  # fmt: skip
    lengths = (LONG, *LENGTHS) if config else LENGTHS
    prompts = [random_tokens(n, seed=n).tolist() for n in lengths]
    params = [greedy(4 + n % 23) for n in lengths]
    context = max(lengths) + 30
    lone = Engine(path, max_sequences=1, context=context, threads=1, batch_invariant=True)
    together = Engine(path, max_sequences=10, context=context, threads=2, batch_invariant=True)
    crowd = together.generate(prompts, params, return_logits=True)
    for prompt, each, output in zip(prompts, params, crowd, strict=True):
        (alone,) = lone.generate([prompt], each, return_logits=True)
        assert alone.logits is not None and output.logits is not None
        assert np.array_equal(alone.logits, output.logits), f"a prompt of {len(prompt)} tokens"
        assert alone.token_ids == output.token_ids


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=9),
    st.integers(1, 7),
)
def test_a_step_is_of_one_prompt_or_of_those_that_decode(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int]], sequences: int
) -> None:
    path = write_toy(tmp_path_factory.mktemp("toy") / "toy.gw", float_products=[])
    library = ToyLibrary()
    engine = Engine(path, library=library, max_sequences=sequences, batch_invariant=True)
    prompts = [[(7 * n + i) % 90 for i in range(length)] for n, (length, _) in enumerate(asked)]
    outputs = engine.generate(prompts, [greedy(count) for _, count in asked])
    for prompt, (_, count), output in zip(prompts, asked, outputs, strict=True):
        assert output.token_ids == toy_greedy(prompt, count)
    for entry, tokens, together, _ in library.steps:
        assert together == 1 or (tokens == together and entry == "decode" and tokens <= 4)
    whole = [tokens for _, tokens, together, _ in library.steps if together == 1]
    chunks = [min(10, length - at) for length, _ in asked for at in range(0, length, 10)]
    for size in set(chunks) - {1}:
        assert whole.count(size) == chunks.count(size), "prompts are cut as they are alone"


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    """Six that decode by steps of four, while prompts keep coming: each moves on at its turn."""
    path = write_toy(tmp_path / "toy.gw", float_products=[])
    engine = Engine(path, library=ToyLibrary(), max_sequences=7, batch_invariant=True)
    old = [engine.submit([n, n], greedy(40)) for n in range(6)]
    while not all(request.generated for request in old):
        engine.step()
    before = [len(request.generated) for request in old]
    for n in range(12):
        new = engine.submit([n] * 10, greedy(1))
        while not new.finished:
            engine.step()
    moved = [len(request.generated) - had for request, had in zip(old, before, strict=True)]
    assert min(moved) >= 6 and max(moved) - min(moved) <= 2


@pytest.mark.parametrize(
    ("options", "plan", "message"),
    [
        ({}, {}, "older graphwright compiled it and did not say"),
        ({}, {"float_products": ["up", "down"]}, r"\(2, the first is 'up'\): .* w8 or w4g32"),
        ({"prefix_cache": True}, {"float_products": []}, "with a prefix cache: what an answer"),
        ({"speculate": "lookup"}, {"float_products": []}, "with guessed tokens: a step of"),
        ({"library": LateToy()}, {"float_products": []}, "on a GPU, whose kernels are chosen"),
    ],
)
def test_where_it_cannot_be_kept(
    options: dict[str, Any], plan: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_toy(tmp_path / "toy.gw", **plan)
    options = {"library": ToyLibrary(), **options}
    with pytest.raises(RequestError, match=f"^batch_invariant cannot be kept .*{message}"):
        Engine(path, batch_invariant=True, **options)


def test_float_weights_say_that_they_are(tmp_path: Path) -> None:
    path = tmp_path / "f32.gw"
    graphwright.compile(tiny_model("llama"), quant="w8:head=f32", check=False).save(path)
    with pytest.raises(RequestError, match=r"with weights that are multiplied as floats \(1, the"):
        Engine(path, batch_invariant=True)


def test_without_it_steps_mix(tmp_path: Path) -> None:
    engine, library = toy_engine(tmp_path, max_sequences=3)
    engine.generate([[1, 2, 3], [4, 5]], greedy(3))
    assert library.steps[0][:3] == ("prefill", 5, 2)
