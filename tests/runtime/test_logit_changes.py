"""Biases and penalties against their formulas, and that of the whole row against transformers'."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import VOCAB, ToyLibrary, toy_engine, toy_logits, word_tokenizer, write_toy
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.grammar import Grammar
from graphwright.runtime.logit_changes import LogitChanges
from graphwright.runtime.sampler import Sampler
from graphwright.runtime.sampling_params import SamplingParams

SIZE = 8
PENALTIES = st.sampled_from([0.0, 0.5, -1.25, 2.0])


def changes(**options: Any) -> LogitChanges:
    return LogitChanges(SamplingParams(**options).resolve({}), SIZE)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, SIZE - 1), max_size=20), PENALTIES, PENALTIES,
    st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100, 100), max_size=SIZE),
)  # fmt: skip
def test_the_formula_of_the_api(
    generated: list[int], presence: float, frequency: float, bias: dict[int, float]
) -> None:
    logits = np.linspace(-3, 5, SIZE, dtype=np.float32)
    some = changes(presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias)
    assert some.empty == (not bias and presence == 0 and frequency == 0)
    for token in generated:
        some.accept(token)
    counts = Counter(generated)
    expected = [
        float(logits[j]) + bias.get(j, 0) - counts[j] * frequency - (counts[j] > 0) * presence
        for j in range(SIZE)
    ]
    before = logits.copy()
    assert np.allclose(some.apply(logits), expected, atol=1e-4)
    assert (logits == before).all(), "the model's own stay"


def test_no_end_before_there_are_enough_tokens(tmp_path: Path) -> None:
    """As transformers' processor for a least number of new tokens has it."""
    params = SamplingParams(temperature=0, min_tokens=3).resolve({})
    some, ends = LogitChanges(params, SIZE, ends=[2, 5]), torch.tensor([2, 5])
    assert not some.empty
    processor = MinNewTokensLengthLogitsProcessor(4, 3, ends)
    ids = torch.tensor([[1, 1, 1, 1]])
    for logits in np.random.default_rng(1).standard_normal((5, SIZE)).astype(np.float32):
        expected = processor(ids, torch.from_numpy(logits)[None])[0].numpy()
        assert (some.apply(logits) == expected).all()
        some.accept(0)
        ids = torch.cat([ids, torch.tensor([[0]])], 1)
    assert LogitChanges(params, SIZE).empty, "nothing ends it but its length"


def test_stop_texts_count_from_the_least_number_of_tokens_on(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.gw", tokenizer=word_tokenizer(),
                     generation_config={"min_new_tokens": 4, "eos_token_id": [1]})  # fmt: skip
    engine = Engine(path, library=ToyLibrary())
    assert engine.tokenizer is not None
    plain = SamplingParams(temperature=0, max_tokens=12, min_tokens=0, ignore_eos=True)
    (free,) = engine.generate(["ab"], plain)
    second, fifth = free.text[1], free.text[4]
    assert all(len(engine.tokenizer.decode([each])) == 1 for each in free.token_ids[:5])
    assert fifth not in free.text[:4]
    (found,) = engine.generate(["ab"], replace(plain, stop=(second, fifth)))
    assert found.text == free.text[:1]
    (found,) = engine.generate(["ab"], replace(plain, stop=(second, fifth), min_tokens=None))
    assert found.text == free.text[:4], "the model's own least number holds"


def test_ids_that_end_an_answer(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    plain = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    (free,) = engine.generate([[5, 6]], plain)
    stop = free.token_ids[5]
    (found,) = engine.generate([[5, 6]], replace(plain, stop_token_ids=[stop]))
    at = free.token_ids.index(stop)
    assert (found.token_ids, found.finish_reason) == (free.token_ids[: at + 1], "stop")
    with pytest.raises(RequestError, match=f"stop_token_ids has the token id {VOCAB}; .* 0 to"):
        engine.generate([[5, 6]], replace(plain, stop_token_ids=[VOCAB]))
    with pytest.raises(RequestError, match="min_tokens cannot be kept where a grammar"):
        SamplingParams(min_tokens=2, grammar=Grammar.regex("a+"))


def test_a_bias_is_that_of_transformers_behind_the_repetition_penalty() -> None:
    logits = np.random.default_rng(1).standard_normal((50, SIZE)).astype(np.float32)
    bias = {1: 1.5, 4: -2.25, 7: 0.5}
    params = SamplingParams(temperature=0, repetition_penalty=1.4, logit_bias=bias).resolve({})
    prompt = [2, 7]
    sampler = Sampler(params, SIZE, prompt, LogitChanges(params, SIZE))
    penalty = RepetitionPenaltyLogitsProcessor(1.4)
    adds = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    ids = list(prompt)
    for row in logits:
        seen = torch.tensor([ids])
        expected = adds(seen, penalty(seen, torch.from_numpy(row[None].copy())))
        ids.append(sampler.choose(row))
        assert ids[-1] == expected.argmax().item()
    assert len(set(ids)) > 3


def test_requests_with_changes_choose_from_whole_rows(tmp_path: Path) -> None:
    """And what others say stays."""
    engine, library = toy_engine(tmp_path, "any")
    greedy = SamplingParams(temperature=0, max_tokens=12)
    biased = SamplingParams(temperature=0, max_tokens=12, logit_bias={5: 4.0, 6: -100})
    punished = SamplingParams(
        temperature=0, max_tokens=12, presence_penalty=2, frequency_penalty=2, logprobs=0
    )
    (plain,) = engine.generate([[3]], greedy)
    library.asked.clear()
    outputs = engine.generate([[3], [3], [3]], [greedy, biased, punished])
    assert outputs[0] == plain
    assert {rows for _, rows in library.asked} == {True}
    for output, bias, penalty in ((outputs[1], {5: 4.0, 6: -100.0}, 0.0), (outputs[2], {}, 2.0)):
        ids: list[int] = []
        for token in output.token_ids:
            row = toy_logits([3, *ids])
            for each, value in bias.items():
                row[each] += value
            for each, count in Counter(ids).items():
                row[each] -= penalty * (count + 1)
            assert token == row.argmax()
            ids.append(token)
    assert outputs[1].token_ids != plain.token_ids and 6 not in outputs[1].token_ids
    assert outputs[2].logprobs is not None  # of the logits as they are
    largest = toy_logits([3]).max()
    total = np.log(np.exp(toy_logits([3]) - largest).sum())
    assert outputs[2].logprobs[0].logprob == pytest.approx(-total, abs=1e-5)


def test_a_token_that_is_not_there(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    for token in (VOCAB, -1):
        with pytest.raises(RequestError, match=f"logit_bias has the token id {token}; .* 0 to 96"):
            engine.generate([[1]], SamplingParams(logit_bias={token: 1}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"presence_penalty": 2.1}, "presence_penalty must be from -2 to 2, not 2.1"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty must be from -2 to 2, not nan"),
        ({"logit_bias": {3: 101}}, "logit_bias of the token 3 must be from -100 to 100, not 101"),
        ({"logit_bias": {"3": 1}}, "a token id of logit_bias must be a whole number, not '3'"),
        ({"logit_bias": {3.5: 1}}, "a token id of logit_bias must be a whole number, not 3.5"),
        ({"logit_bias": [3]}, r"logit_bias must be numbers by token id, .* not \[3\]"),
        ({"grammar": "[a-z]"}, r"grammar must be a Grammar, not '\[a-z\]'"),
    ],
)
def test_bad_values(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        SamplingParams(**options)


def test_equal_parameters_are_equal_and_hashable() -> None:
    one, other = (SamplingParams(logit_bias=each) for each in ({2: 1, 1: 2}, ((1, 2), (2, 1))))
    assert one == other and hash(one) == hash(other) and one.biases == ((1, 2.0), (2, 1.0))
