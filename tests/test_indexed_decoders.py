"""Attention to keys that an indexer chooses, through the artifact and the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from indexed_decoders import CHOSEN, indexed_model
from tiny_models import random_tokens
from torch import Tensor

import graphwright
from graphwright.backends.reference.engine import ReferenceEngine
from graphwright.cli import main_command
from graphwright.inspector import memory_table, summary
from graphwright.ir.tolerance import check_close
from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams

STEPS = 24
GREEDY = SamplingParams(temperature=0.0, max_tokens=STEPS, ignore_eos=True)


class Subject:
    """The eager model and its artifact."""

    def __init__(self, folder: Path) -> None:
        self.eager: Any = indexed_model()
        self.artifact = graphwright.compile(indexed_model(), chunk=16, check=True).save(
            folder / "model.gw"
        )

    def logits(self, tokens: list[int]) -> Tensor:
        """Eager logits [T, V] of one sequence."""
        with torch.no_grad():
            result: Tensor = self.eager(torch.tensor([tokens]))[0]
        return result

    def check(self, prompt: list[int], output: graphwright.Output) -> None:
        """Greedy tokens and the logits behind each of them equal eager's."""
        wanted = self.logits([*prompt, *output.token_ids])[len(prompt) - 1 : -1]
        assert output.logits is not None and len(output.token_ids) == STEPS
        check_close(torch.from_numpy(output.logits.copy()), wanted)
        assert output.token_ids == wanted.argmax(-1).tolist()


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("indexed"))


def prompt_of(length: int) -> list[int]:
    tokens: list[int] = random_tokens(length, seed=length).tolist()
    return tokens


def test_what_is_chosen_matters(subject: Subject) -> None:
    """Else nothing below would show anything."""
    chosen = []
    for layer in subject.eager.layers[:2]:
        layer.indexer.register_forward_hook(lambda *call: chosen.append(call[2][0]))
    subject.logits(prompt_of(60))
    for marks in chosen:
        assert (marks.tril().sum(-1) == torch.arange(1, 61).clamp(max=CHOSEN)).all()
        latest = torch.ones(60, 60).tril().triu(1 - CHOSEN).bool()
        assert (marks & ~latest)[CHOSEN:].any(-1).float().mean() > 0.9


@pytest.mark.parametrize("lengths", [(1,), (CHOSEN,), (40,), (13, 1, 7), (2, 75, 16)])
def test_generation_equals_eager(subject: Subject, lengths: tuple[int, ...]) -> None:
    """Fewer tokens than are chosen and more, ragged batches, prompts of several chunks of 16."""
    prompts = [prompt_of(length) for length in lengths]
    for threads in (1, 2):
        engine = Engine(subject.artifact, threads=threads)
        outputs = engine.generate(prompts, GREEDY, return_logits=True)
        for prompt, output in zip(prompts, outputs, strict=True):
            subject.check(prompt, output)


def test_chunked_prefill_equals_one_shot(subject: Subject) -> None:
    prompt = prompt_of(90)
    check_close(torch.from_numpy(Engine(subject.artifact).logits(prompt)), subject.logits(prompt))


def test_prompts_that_begin_alike_share_index_keys_too(subject: Subject) -> None:
    engine = Engine(subject.artifact, max_sequences=2, prefix_cache=True)
    begin = prompt_of(40)
    for end in ([], [7], [9, 9, 9], prompt_of(30)):
        prompt = [*begin, *end]
        before = engine.statistics.prefill_tokens
        (output,) = engine.generate([prompt], GREEDY, return_logits=True)
        subject.check(prompt, output)
        computed = engine.statistics.prefill_tokens - before
        assert computed == len(prompt) - (32 if end else 0)


@pytest.mark.parametrize("options", [{"kv_cache_dtype": "f16"}, {"kv_cache_dtype": "bf16"},
                                     {"kv_cache_dtype": "int8", "quant": "w8"}])  # fmt: skip
def test_fewer_bits_equal_their_reference(options: dict[str, Any]) -> None:
    """And each pass stands its check, in which what is chosen stays."""
    compiled = graphwright.compile(indexed_model(), chunk=16, check=True, **options)
    prompt = prompt_of(37)
    (output,) = compiled.load().generate([prompt], GREEDY, return_logits=True)
    tokens = torch.tensor([*prompt, *output.token_ids])
    reference = ReferenceEngine(compiled.program)
    chunks = [[len(part)] for part in tokens.split(16)]
    wanted = reference.logits_of([tokens], chunks)[0][len(prompt) - 1 : -1]
    assert output.logits is not None
    error = (torch.from_numpy(output.logits.copy()) - wanted).abs().max()
    assert error <= 0.01 * wanted.std()


def test_index_keys_are_counted_and_shown(subject: Subject, tmp_path: Path) -> None:
    artifact = Engine(subject.artifact).artifact
    kv = artifact.json("plan.json")["kv"]
    assert [each["bytes_per_token"] for each in kv["indexes"]] == [4 * 8] * 2
    assert kv["block_bytes"] == 16 * (2 * 4 * 8 + 3 * 2 * 4 * 48)
    assert "3 states, 2 of index keys" in summary(artifact)
    assert "index keys, by which others are chosen" in memory_table(artifact)
    result = CliRunner().invoke(main_command, ["plan", str(subject.artifact), "--context", "64"])
    assert result.exit_code == 0, result.output
    assert "2 x index keys: 1 head of 8, float32" in result.output
    assert f"float32, {CHOSEN} tokens at the most, of their choice, are read" in result.output
