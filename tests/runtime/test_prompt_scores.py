"""Log probabilities of prompts, chunk by chunk, beside requests of every other kind."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from echo_toy import EchoToy, echo_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from late_toy import LateToy
from numpy.typing import NDArray
from toy_model import (
    BLOCK,
    MAX_CONTEXT,
    PLAN,
    VOCAB,
    ToyLibrary,
    toy_logits,
    word_tokenizer,
    write_toy,
)

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.log_probabilities import TokenLogprobs, token_logprobs
from graphwright.runtime.request import Output
from graphwright.runtime.sampling_params import SamplingParams

PROMPTS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40)
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def toy(folder: Path, library: ToyLibrary | None = None, **options: object) -> Engine:
    large = {**PLAN["weights"], "bytes_per_token": 10**9}  # so that guesses are worth trying
    path = write_toy(folder / "toy.gw", tokenizer=word_tokenizer(), weights=large)
    return Engine(path, library=library or ToyLibrary(), **options)  # type: ignore[arg-type]


def expected(prompt: Sequence[int], most: int) -> list[TokenLogprobs]:
    return [
        token_logprobs(toy_logits(prompt[:place]), prompt[place], most)
        for place in range(1, len(prompt))
    ]


def check(output: Output, prompt: Sequence[int], most: int) -> None:
    found = output.prompt_logprobs
    assert found is not None and [each.token_id for each in found] == list(prompt)
    assert math.isnan(found[0].logprob) and found[0].top == ()
    for one, other in zip(found[1:], expected(prompt, most), strict=True):
        assert (one.logprob, one.top) == (other.logprob, other.top)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            PROMPTS,
            st.sampled_from([None, 0, 3]),
            st.sampled_from([0, 1, 5]),
            st.sampled_from([None, 1]),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["none", "largest", "any", "late"]),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_token_has_its_row_in_any_company(
    asked: list[tuple[list[int], int | None, int, int | None]], kind: str, sequences: int,
    apart: bool,
) -> None:  # fmt: skip
    """And nobody's answer changes by that."""
    library = LateToy() if kind == "late" else ToyLibrary(kind)  # type: ignore[arg-type]
    params = [
        SamplingParams(
            temperature=0 if seed is None else 2.0, seed=seed, ignore_eos=True,
            prompt_logprobs=most, max_tokens=tokens if most is not None else max(1, tokens),
        )
        for _, most, tokens, seed in asked
    ]  # fmt: skip
    prompts = [prompt for prompt, *_ in asked]
    with tempfile.TemporaryDirectory() as folder:
        engine = toy(Path(folder), library, max_sequences=sequences, prefix_cache=True)
        engine._scheduler._apart = apart
        outputs = engine.generate(prompts, params)
        plain = toy(Path(folder), max_sequences=sequences)
        for (prompt, most, tokens, seed), output, each in zip(asked, outputs, params, strict=True):
            if most is None:
                assert output.prompt_logprobs is None
            else:
                check(output, prompt, most)
            assert len(output.token_ids) == each.max_tokens
            if tokens:
                again = SamplingParams(temperature=each.temperature, seed=seed, ignore_eos=True,
                                       max_tokens=tokens)  # fmt: skip
                assert plain.generate([prompt], again)[0].token_ids == output.token_ids
        assert engine._scheduler.running == 0 and engine._pool.free == engine._pool.blocks


def test_beside_guessed_tokens(tmp_path: Path) -> None:
    """A prompt that is scored while another request is decoded with drafts."""
    engine = toy(tmp_path, EchoToy("largest"), speculate="lookup")
    repeats, prompt = [5, 6, 7, 8, 9] * 3, [3, 1, 4, 1, 5, 9, 2, 6]
    more = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    score = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, prompt_logprobs=1)
    (alone,) = engine.generate([repeats], more)
    first = engine.submit(repeats, more)
    for _ in range(4):
        engine.step()
    second = engine.submit(prompt, score)
    while not (first.finished and second.finished):
        engine.step()
    assert first.output().token_ids == alone.token_ids
    found = second.output().prompt_logprobs
    assert found is not None
    for place in range(1, len(prompt)):
        row = token_logprobs(echo_logits(prompt[:place]), prompt[place], 1)
        assert (found[place].logprob, found[place].top) == (row.logprob, row.top)
    assert engine.statistics.accepted_tokens > 0


def test_nothing_but_the_prompt(tmp_path: Path) -> None:
    engine = toy(tmp_path)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    prompt = list(range(2, 2 + MAX_CONTEXT))  # fills the context: nothing more would fit
    (output,) = engine.generate([prompt], params)
    assert (output.text, output.token_ids, output.finish_reason) == ("", [], "length")
    check(output, prompt, 0)
    (piece,) = engine.stream(prompt[: BLOCK + 1], params)
    assert piece.finish_reason == "length" and len(piece.prompt_logprobs or ()) == BLOCK + 1
    with pytest.raises(RequestError, match="64 with at least one to generate"):
        engine.generate([prompt], SamplingParams(max_tokens=1, prompt_logprobs=0))
    with pytest.raises(RequestError, match="max_tokens must be 1 or more, not 0"):
        SamplingParams(max_tokens=0)


def test_offsets_are_places_in_the_prompt(tmp_path: Path) -> None:
    engine = toy(tmp_path)
    assert engine.tokenizer is not None
    text = "Caf\u00e9 au lait"
    (output,) = engine.generate([text], SamplingParams(max_tokens=1, prompt_logprobs=0))
    assert output.prompt_logprobs is not None
    for each in output.prompt_logprobs:
        name = engine.tokenizer.token_bytes(each.token_id)
        if each.token_id >= 2 and name.isascii():
            assert text[each.text_offset :].startswith(name.decode()), each
    assert [each.text_offset for each in output.prompt_logprobs[:3]] == [0, 0, 1]
    assert output.prompt_logprobs[-1].text_offset == len(text) - 1


class Damaged(ToyLibrary):
    """Some rows are not numbers."""

    def logits_after(self, history: Sequence[int]) -> NDArray[np.float32]:
        logits = super().logits_after(history)
        return logits * np.nan if history[-1] == 13 else logits


def test_rows_that_are_no_numbers_end_that_request_alone(tmp_path: Path) -> None:
    engine = toy(tmp_path, Damaged())
    good = engine.submit([1, 2], GREEDY)
    bad = engine.submit([4, 13, 5, 6], SamplingParams(max_tokens=3, prompt_logprobs=0))
    with pytest.raises(RequestError, match="logits is nan here"):
        engine.step()
    assert bad.finished and bad.error is not None and not good.finished
    while not good.finished:
        engine.step()
    assert len(good.output().token_ids) == 6
    assert engine._scheduler.running == 0
