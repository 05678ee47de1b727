"""Decoders with one sin each are refused, and the refusal says which; their near misses compile."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from broken_models import BROKEN, CONTEXT, SOUND, VOCAB, build

import graphwright
from graphwright.frontend.capture import capture_module
from graphwright.ir import Program
from graphwright.ir.errors import FrontendError, PassError
from graphwright.ir.tolerance import check_close
from graphwright.passes.base import PassContext
from graphwright.passes.pipeline import pipeline
from graphwright.passes.running import run_passes
from graphwright.passes.verification import NumericCheck
from graphwright.runtime.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
# Sins that the trace itself refuses: the reason is then behind the colon of the first rung.
TRACE = "cannot be traced for a variable number of tokens.\n"


def first_sentence(text: str) -> str:
    """Up to the first full stop; with the first rung's reason when nothing could be traced."""
    head, found, rest = text.partition(TRACE)
    return head + found + rest.splitlines()[0] if found else re.split(r"\.(?:\s|$)", text)[0]


def refusal(name: str, check: NumericCheck | None) -> str:
    """What capture or the passes say about a broken model."""
    with pytest.raises((FrontendError, PassError)) as caught:
        run_passes(captured(name), pipeline(), PassContext(check=check))
    return first_sentence(str(caught.value))


@functools.cache
def trace(name: str) -> Program | FrontendError:
    try:
        return capture_module(build(BROKEN[name]))
    except FrontendError as error:
        return error


def captured(name: str) -> Program:
    """Its trace. Raises FrontendError."""
    found = trace(name)
    if isinstance(found, FrontendError):
        raise found
    return found.copy()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_refused_with_the_true_reason_first(name: str) -> None:
    for check in (None, NumericCheck()):
        said = refusal(name, check)
        assert all(word in said for word in BROKEN[name].words), said


@pytest.mark.parametrize("check", [False, True, None])
def test_compile_says_the_same(check: bool | None) -> None:
    for name in ("mean_over_the_sequence", "mask_of_padding", "branch_on_content"):
        with pytest.raises((FrontendError, PassError)) as caught:
            graphwright.compile(build(BROKEN[name]), check=check)
        said = first_sentence(str(caught.value))
        assert all(word in said for word in BROKEN[name].words), said


def test_there_are_many_broken_models_and_each_says_what_it_must_show() -> None:
    assert len(BROKEN) >= 20 and len(SOUND) >= 10
    assert all(len(" ".join(case.words)) > 10 for case in BROKEN.values())


@pytest.mark.parametrize("name", SOUND)
def test_a_near_miss_compiles_and_is_exact(name: str, tmp_path: Path) -> None:
    model = build(SOUND[name])
    compiled = graphwright.compile(model, check=True, chunk=8)
    engine = graphwright.load(compiled.save(tmp_path / "model.gw"))
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in (1, 11, 30)]
    outputs = engine.generate(prompts, GREEDY, return_logits=True)
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = [*prompt, *output.token_ids]
        assert len(tokens) <= CONTEXT and output.logits is not None
        with torch.no_grad():
            wanted = model(torch.tensor([tokens]))[0, len(prompt) - 1 : -1]
        check_close(torch.from_numpy(output.logits.copy()), wanted)
