"""Log probabilities against torch's log_softmax, and by the engine over the toy model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import ToyLibrary, toy_engine, toy_logits, word_tokenizer, write_toy

from graphwright.runtime.draws import LARGEST
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.log_probabilities import token_logprobs
from graphwright.runtime.sampling_params import SamplingParams

VALUES = st.sampled_from([0.0, 1.0, -3.0, float("-inf")]) | st.floats(-60, 60, width=32)


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40), st.integers(0, 50), st.data())
def test_they_are_the_log_softmax(values: list[float], most: int, data: st.DataObject) -> None:
    logits = np.array([*values, 0.5], np.float32)
    token = data.draw(st.integers(0, len(logits) - 1))
    expected = torch.log_softmax(torch.from_numpy(logits).double(), 0).numpy()
    found = token_logprobs(logits, token, most)
    ids = [each for each, _ in found.top]
    assert ids == np.argsort(-logits, kind="stable")[:most].tolist()
    assert np.allclose(found.logprob, expected[token], rtol=1e-6, atol=1e-6)
    assert np.allclose([each for _, each in found.top], expected[ids], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_give_no_probability(wrong: float) -> None:
    with pytest.raises(RequestError, match=f"the largest of the model's logits is {wrong} here"):
        token_logprobs(np.array([1, wrong], np.float32), 0, 1)


def test_they_come_from_the_logits_as_they_are(tmp_path: Path) -> None:
    """However tokens are chosen, alone and beside others; only who asks gets any."""
    engine, library = toy_engine(tmp_path, "any")
    greedy = SamplingParams(temperature=0, max_tokens=5)
    drawn = SamplingParams(
        temperature=2, top_k=5, repetition_penalty=1.5, seed=1, max_tokens=5, logprobs=3
    )
    some = SamplingParams(temperature=0, max_tokens=5, logprobs=0)
    plain = engine.generate([[1, 2], [3]], [greedy, greedy])
    assert plain[0].logprobs is None
    library.asked.clear()
    outputs = engine.generate([[1, 2], [1, 2], [3]], [greedy, drawn, some])
    assert set(library.asked) == {((LARGEST,) * 3, True)}
    assert outputs[0] == plain[0] and outputs[2].token_ids == plain[1].token_ids
    for prompt, output, most in (([1, 2], outputs[1], 3), ([3], outputs[2], 0)):
        assert output.logprobs is not None
        assert [each.token_id for each in output.logprobs] == output.token_ids
        for number, found in enumerate(output.logprobs):
            logits = toy_logits(prompt + output.token_ids[:number])
            assert found == token_logprobs(logits, output.token_ids[number], most)


def test_offsets_are_places_in_the_text(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.gw", tokenizer=word_tokenizer())
    engine = Engine(path, library=ToyLibrary())
    params = SamplingParams(temperature=3, seed=3, max_tokens=50, ignore_eos=True, logprobs=0)
    (output,) = engine.generate(["a"], params)
    assert output.logprobs is not None and engine.tokenizer is not None
    names = [engine.tokenizer.token_bytes(each) for each in output.token_ids]
    compared = 0
    for found, name in zip(output.logprobs, names, strict=True):
        special = found.token_id < 2
        if name.isascii() and not special:
            compared += 1
            at = found.text_offset
            assert output.text[at:].lstrip("\ufffd").startswith(name.decode()), (at, name)
    assert compared > 30
    pieces = list(engine.stream("a", params))
    streamed = [each for piece in pieces for each in piece.logprobs or ()]
    assert streamed == output.logprobs


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "3"])
def test_bad_numbers(wrong: object) -> None:
    with pytest.raises(RequestError, match=f"logprobs must be a whole number.* not {wrong!r}"):
        SamplingParams(logprobs=wrong)  # type: ignore[arg-type]
