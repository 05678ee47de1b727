"""Models in which some layers see everything and others have windows: a pool of blocks for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recurrent_decoders import recurrent_model
from short_convolutions import GatedConv, SelfAttention, decoder
from tiny_models import random_tokens, save_tiny, tiny_model
from torch import nn

import graphwright
from graphwright.__main__ import main
from graphwright.backends.reference import ReferenceEngine
from graphwright.runtime.artifact import Artifact
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError
from graphwright.runtime.sampling_params import SamplingParams

LONG = 256  # tokens: much longer than the windows, and blocks of them are used again and again
FIVE_IN_SIX = ["sliding_attention"] * 5 + ["full_attention"]
Reference = Callable[[list[int]], np.ndarray]


def windowed(name: str) -> nn.Module:
    """A decoder by the name of its kind."""
    if name == "five in six":
        return tiny_model("gemma3", num_layers=6, layer_types=FIVE_IN_SIX)
    if name == "first layer full":
        return tiny_model("gpt-oss", layer_types=["full_attention", "sliding_attention"])
    if name == "chunks":
        return tiny_model("llama", num_layers=2)
    if name in ("two windows", "three reaches"):
        return tiny_model("gemma2", num_layers=3 if name == "two windows" else 4)
    if name == "recurrences":
        return recurrent_model("falcon_h1")
    assert name == "convolutions"
    return decoder(lambda: GatedConv(3, groups=48, padding=2), SelfAttention, SelfAttention)


ASKED = {
    "chunks": "chunk(24) @ 1",
    "two windows": "window(40) | first(3) @ 1",
    "three reaches": "window(40) | first(3) @ 3",
    "convolutions": "window(20) @ 1",
    "recurrences": "window(20) @ 0",
}
KINDS = ["five in six", "first layer full", *ASKED]
OF_ONE_SEQUENCE = ("convolutions", "recurrences")  # states that nobody else can use


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def subject(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    """(logits [tokens, vocabulary] of a text, an artifact). The logits are those of the model; of
    one whose attention was restricted those of the program, whose reference keeps everything."""
    model = windowed(kind)
    compiled = graphwright.compile(
        model, chunk=16, check=False, context=LONG, attention=ASKED.get(kind)
    )

    def reference(tokens: list[int]) -> np.ndarray:
        text = torch.tensor(tokens)
        with torch.no_grad():
            if kind in ASKED:
                whole = ReferenceEngine(compiled.program)
                return whole.logits_of([text], [[len(text)]])[0].numpy()
            return np.asarray(model(text[None], use_cache=False).logits[0])

    return reference, compiled.save(tmp_path_factory.mktemp("pools") / "m.gw")


def test_long_texts_beside_each_other_are_those_of_the_model(
    kind: str, subject: tuple[Reference, Path]
) -> None:
    """More sequences than fit, with and without known beginnings and guessed tokens."""
    reference, path = subject
    first = random_tokens(90, seed=1).tolist()
    prompts = [first, [5], random_tokens(50, seed=2).tolist(), [*first, 7, 8], first[:40]]
    params = SamplingParams(temperature=0, max_tokens=110, ignore_eos=True)
    options: tuple[dict[str, Any], ...] = ({}, {"prefix_cache": True})
    if kind not in OF_ONE_SEQUENCE:
        options = (*options, {"prefix_cache": True, "speculate": "lookup"})
    for each in options:
        engine = Engine(path, max_sequences=3, context=LONG, **each)
        for _ in range(2):
            outputs = engine.generate(prompts, params, return_logits=True)
        for prompt, output in zip(prompts, outputs, strict=True):
            want = reference([*prompt, *output.token_ids])[len(prompt) - 1 : -1]
            assert output.logits is not None
            assert np.abs(output.logits - want).max() <= 2e-3 * np.abs(want).max()
        assert engine._pool.free == engine._pool.blocks


def test_turns_of_a_conversation_go_on_where_the_last_one_ended(
    kind: str, subject: tuple[Reference, Path]
) -> None:
    """What is kept of a text that has gone out of reach in one pool, and states with it."""
    reference, path = subject
    engine = Engine(path, max_sequences=2, context=LONG, prefix_cache=True)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    text = random_tokens(70, seed=4).tolist()
    for turn in range(3):
        prompt = [*text, *random_tokens(15, seed=turn + 5).tolist()]
        request = engine._request(prompt, params, True, None)
        engine._stepper.add(request)
        while not request.finished:
            engine.step()
        text, output = [*prompt, *request.generated], request.output()
        want = reference(text)[len(prompt) - 1 : -1]
        assert output.logits is not None
        assert np.abs(output.logits - want).max() <= 2e-3 * np.abs(want).max()
        if turn:
            assert request.sequence.reused >= (len(prompt) - 16) // 16 * 16, turn


def test_layers_with_windows_hold_little(kind: str, subject: tuple[Reference, Path]) -> None:
    _, path = subject
    engine = Engine(path, max_sequences=3, context=LONG)
    sizes = [pool.blocks for pool in engine._pool.pools]
    assert len(sizes) == (3 if kind == "three reaches" else 2)
    assert (sizes[0] == 3 * LONG // 16) is (kind != "two windows")
    assert all(size <= 3 * 6 + 1 for size in sizes[1:])
    assert engine.memory.allocated == engine.memory.planned


def test_every_position_of_a_text_is_scored(subject: tuple[Reference, Path]) -> None:
    reference, path = subject
    tokens = random_tokens(LONG, seed=3).tolist()
    got, want = Engine(path, max_sequences=1, context=LONG).logits(tokens), reference(tokens)
    assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()


def test_int8_caches_in_pools(tmp_path: Path) -> None:
    model = windowed("five in six")
    path = graphwright.compile(model, chunk=16, check=False, kv_cache_dtype="int8").save(
        tmp_path / "m.gw"
    )
    tokens = random_tokens(120).tolist()
    got = Engine(path, max_sequences=2, context=LONG).logits(tokens)
    whole = graphwright.compile(model, chunk=16, check=False).load(mmap=False).logits(tokens)
    assert np.abs(got - whole).mean() <= 0.03 * np.abs(whole).max()


def test_answers_do_not_depend_on_company(tmp_path: Path) -> None:
    path = graphwright.compile(windowed("five in six"), quant="w8", chunk=16, check=False).save(
        tmp_path / "m.gw"
    )
    prompts = [random_tokens(n, seed=n).tolist() for n in (60, 3, 33, 21)]
    params = SamplingParams(temperature=0, max_tokens=70, ignore_eos=True)
    lone = Engine(path, max_sequences=1, context=LONG, threads=1, batch_invariant=True)
    together = Engine(path, max_sequences=4, context=LONG, threads=2, batch_invariant=True)
    alone = [lone.generate([prompt], params, return_logits=True)[0] for prompt in prompts]
    for one, other in zip(
        alone, together.generate(prompts, params, return_logits=True), strict=True
    ):
        assert one.logits is not None and other.logits is not None
        assert np.array_equal(one.logits, other.logits)


def test_readers_that_know_no_pools_refuse_the_file(
    subject: tuple[Reference, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, path = subject
    assert Artifact.open(path).manifest.minimum_reader == 4
    monkeypatch.setattr("graphwright.runtime.artifact.FORMAT_VERSION", 3)
    with pytest.raises(ArtifactError, match=r"readers of format 4, this one reads up to 3"):
        Artifact.open(path)
    plain = graphwright.compile(tiny_model("mistral", num_layers=1), check=False)
    assert Artifact.open(plain.save(tmp_path / "plain.gw")).manifest.minimum_reader == 1


def test_the_command_line_plans_and_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = str(save_tiny("gemma3", tmp_path / "tiny")), tmp_path / "m.gw"
    sizes = ["--max-sequences", "2", "--context", "200"]
    assert main(["plan", checkpoint, "--chunk", "32", *sizes]) == 0
    planned = capsys.readouterr().out
    assert (
        "  pool              106 kB   53.25 kB a sequence; of its blocks all are kept\n" in planned
    )
    assert "a sequence; of its blocks those out of reach are given back\n" in planned
    assert main(["compile", checkpoint, "--chunk", "32", "-o", str(out), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["plan", str(out), *sizes]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == planned.splitlines()[1:]
    assert main(["plan", str(out), *sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    engine = graphwright.load(out, max_sequences=2, context=200)
    assert engine.memory.allocated == engine.memory.planned == found["planned"]
    bytes_of = [pool["bytes"] for pool in found["kv"]["pools"]]
    assert sum(bytes_of) <= found["planned"]["kv"] < sum(bytes_of) + 4096
    assert main(["inspect", str(out), "--memory"]) == 0
    shown = capsys.readouterr().out
    assert "kv cache: blocks of 16 positions in 2 pools\n" in shown
    given_back = "of a sequence all but the last 8 positions are given back"
    assert f"  pool 1   4096 bytes each, {given_back}\n" in shown
    assert main(["inspect", str(out), "--html", str(tmp_path / "m.html")]) == 0
