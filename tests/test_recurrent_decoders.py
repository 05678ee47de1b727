"""Recurrent decoders of transformers, through the artifact and the engine.

They equal eager, token for token, whatever runs beside, before and after a sequence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from recurrent_decoders import RECURRENT, recurrent_model
from tiny_models import random_tokens
from torch import Tensor

import graphwright
from graphwright.backends.reference.engine import ReferenceEngine
from graphwright.cli import main_command
from graphwright.frontend import capture_module
from graphwright.inspector import memory_table, summary
from graphwright.ir.tolerance import check_close
from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams

STEPS, CHUNK = 12, 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=STEPS, ignore_eos=True)
FAST = ("mamba", "qwen3_5_text")
# By name: states of recurrences, and caches of keys and values.
STATES = {
    "mamba": (4, 0), "mamba2": (4, 0), "qwen3_next": (2, 1), "qwen3_5_text": (2, 1),
    "recurrent_gemma": (4, 1), "falcon_h1": (4, 2), "xlstm": (6, 0),
}  # fmt: skip


class Subject:
    """An eager model, what it was compiled to, and its artifact."""

    def __init__(self, name: str, folder: Path, **options: Any) -> None:
        self.eager: Any = recurrent_model(name)
        self.compiled = graphwright.compile(
            recurrent_model(name), chunk=CHUNK, **{"check": False, **options}
        )
        self.artifact = self.compiled.save(folder / "model.gw")

    def logits(self, tokens: list[int]) -> Tensor:
        """Eager logits [T, V] of one sequence, without a cache."""
        with torch.no_grad():
            logits: Tensor = self.eager(torch.tensor([tokens]), use_cache=False).logits[0]
        return logits

    def check_generation(self, prompt: list[int], output: graphwright.Output) -> None:
        """Greedy tokens and the logits behind each of them equal eager's."""
        wanted = self.logits([*prompt, *output.token_ids])[len(prompt) - 1 : -1]
        assert output.logits is not None and len(output.token_ids) == STEPS
        check_close(torch.from_numpy(output.logits.copy()), wanted)
        assert output.token_ids == wanted.argmax(-1).tolist()


@pytest.fixture(scope="module", params=[
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in RECURRENT
])  # fmt: skip
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(request.param, tmp_path_factory.mktemp(request.param))


def prompt_of(length: int) -> list[int]:
    tokens: list[int] = random_tokens(length, seed=length).tolist()
    return tokens


def test_the_plan_has_a_slot_for_the_states(
    subject: Subject, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["subject"]
    artifact = Engine(subject.artifact).artifact
    kv = artifact.json("plan.json")["kv"]
    rolling = len(kv.get("rolling", ()))
    assert (len(kv["recurrent"]) + rolling, len(kv["states"])) == STATES[name]
    assert kv["slot_bytes"] >= sum(4 * state["size"] for state in kv["recurrent"])
    assert f"{len(kv['recurrent'])} recurrent a sequence" in summary(artifact)
    assert f"recurrent states: {kv['slot_bytes']} bytes a sequence" in memory_table(artifact)


def test_generation_equals_transformers(subject: Subject) -> None:
    """Prompts shorter than windows and longer than a chunk, in a ragged batch and alone."""
    for lengths in ((1,), (2, 37, 13, 1), (CHUNK, CHUNK + 1)):
        prompts = [prompt_of(length) for length in lengths]
        outputs = Engine(subject.artifact).generate(prompts, GREEDY, return_logits=True)
        for prompt, output in zip(prompts, outputs, strict=True):
            subject.check_generation(prompt, output)


def test_chunked_prefill_equals_one_shot(subject: Subject) -> None:
    prompt = prompt_of(3 * CHUNK + 5)
    check_close(torch.from_numpy(Engine(subject.artifact).logits(prompt)), subject.logits(prompt))


def test_more_requests_than_sequences(subject: Subject) -> None:
    prompts = [prompt_of(length) for length in (5, 21, 1, 2, 40, 3, 9)]
    engine = Engine(subject.artifact, max_sequences=2)
    outputs = engine.generate(prompts, GREEDY, return_logits=True)
    for prompt, output in zip(prompts, outputs, strict=True):
        subject.check_generation(prompt, output)


def test_a_new_sequence_does_not_see_the_one_before_it(subject: Subject) -> None:
    """Cancelled in the midst of its prompt, or of its answer, in the only slot there is."""
    engine = Engine(subject.artifact, max_sequences=1)
    for steps in (1, 3, 6):
        request = engine.submit(prompt_of(40), GREEDY)
        for _ in range(steps):
            engine.step()
        engine.cancel(request)
        prompt = prompt_of(steps)
        (output,) = engine.generate([prompt], GREEDY, return_logits=True)
        subject.check_generation(prompt, output)


def test_an_answer_goes_on(subject: Subject) -> None:
    """What was generated is a prompt of its own, of the same logits."""
    engine, prompt = Engine(subject.artifact), prompt_of(7)
    (first,) = engine.generate([prompt], GREEDY)
    (second,) = engine.generate([[*prompt, *first.token_ids]], GREEDY, return_logits=True)
    subject.check_generation([*prompt, *first.token_ids], second)


def test_the_file_is_the_same_and_verifies(
    subject: Subject, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["subject"]
    again = graphwright.compile(recurrent_model(name), chunk=CHUNK, check=False)
    path = again.save(tmp_path / "again.gw")
    assert path.read_bytes() == subject.artifact.read_bytes()
    result = CliRunner().invoke(main_command, ["verify", str(path)], catch_exceptions=False)
    assert result.exit_code == 0 and "golden positions agree" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", RECURRENT)
def test_each_pass_is_checked_by_numbers(name: str, tmp_path: Path) -> None:
    subject = Subject(name, tmp_path, check=True)
    (output,) = Engine(subject.artifact).generate([prompt_of(5)], GREEDY, return_logits=True)
    subject.check_generation(prompt_of(5), output)


def check_near(subject: Subject, allowed: float) -> None:
    """As the reference says within `allowed` of a standard deviation, and not far from float."""
    prompt = prompt_of(21)
    (output,) = Engine(subject.artifact).generate([prompt], GREEDY, return_logits=True)
    tokens = torch.tensor([*prompt, *output.token_ids])
    reference = ReferenceEngine(subject.compiled.program)
    wanted = reference.logits_of([tokens], [(len(tokens),)])[0][len(prompt) - 1 : -1]
    assert output.logits is not None
    got = torch.from_numpy(output.logits.copy())
    assert (got - wanted).abs().max() <= allowed * wanted.std()
    exact = subject.logits(tokens.tolist())[len(prompt) - 1 : -1]
    assert 0 < (got - exact).abs().max() <= 0.4 * exact.std()


def test_int8_weights(tmp_path: Path) -> None:
    check_near(Subject("mamba", tmp_path, quant="w8"), 0.05)


def test_int8_keys_and_values_of_a_hybrid(tmp_path: Path) -> None:
    subject = Subject("qwen3_5_text", tmp_path, kv_cache_dtype="int8")
    kv = Engine(subject.artifact).artifact.json("plan.json")["kv"]
    assert [state["dtype"] for state in kv["states"]] == ["int8"] and kv["recurrent"]
    check_near(subject, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("quant", ["w8", "w4g32"])
def test_quantized_weights_of_all(name: str, quant: str, tmp_path: Path) -> None:
    """Close to what the reference of the quantized program says."""
    subject = Subject(name, tmp_path, quant=quant)
    prompt = prompt_of(21)
    (output,) = Engine(subject.artifact).generate([prompt], GREEDY, return_logits=True)
    tokens = torch.tensor([*prompt, *output.token_ids])
    reference = ReferenceEngine(subject.compiled.program)
    wanted = reference.logits_of([tokens], [(len(tokens),)])[0][len(prompt) - 1 : -1]
    assert output.logits is not None
    error = (torch.from_numpy(output.logits.copy()) - wanted).abs().max()
    # An activation on the border of two integers, whose other choice stays in the states.
    assert error <= 0.25 * wanted.std()


@pytest.mark.slow
def test_weights_are_rounded_by_tokens(tmp_path: Path) -> None:
    """Sequences of several blocks, of which each has a slot."""
    ids = torch.stack([random_tokens(70, seed=seed) for seed in range(10)])
    subject = Subject("qwen3_5_text", tmp_path, quant="w4g32", calibration=ids)
    (output,) = Engine(subject.artifact).generate([prompt_of(9)], GREEDY)
    assert len(output.token_ids) == STEPS


def test_a_vocabulary_may_have_fewer_tokens_than_an_example() -> None:
    """The whole model is what keeps the states of this one: an example for it is of token ids."""
    program = capture_module(recurrent_model("xlstm", vocab_size=40))
    assert program.info.vocab_size == 40
    scans = [n for n in program.graph.nodes if n.target is torch.ops.gw.scan_along_tokens.default]
    assert len(scans) == STATES["xlstm"][0]
