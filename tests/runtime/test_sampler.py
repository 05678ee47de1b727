"""Sampling against distributions worked out by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from drawn_tokens import chosen_token, kept_weights
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphwright.runtime.errors import RequestError
from graphwright.runtime.sampler import Sampler
from graphwright.runtime.sampling_params import SamplingParams


def sampler(seen: tuple[int, ...] = (), size: int = 8, **options: Any) -> Sampler:
    return Sampler(SamplingParams(**options).resolve({}), size, list(seen))


def frequencies(logits: NDArray[np.float32], **options: Any) -> dict[int, float]:
    one = sampler(size=len(logits), seed=1, **options)
    counts = Counter(one.choose(logits) for _ in range(4000))
    return {token: count / 4000 for token, count in sorted(counts.items())}


LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32))


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert sampler(temperature=0).choose(np.array([1, 3, 3, 2], np.float32)) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, {0: 0.1, 1: 0.4, 2: 0.05, 3: 0.25, 4: 0.2}),
        ({"temperature": 0.5}, {0: 0.037, 1: 0.586, 2: 0.009, 3: 0.229, 4: 0.147}),
        ({"top_k": 2}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        ({"top_p": 0.6}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        ({"top_p": 0.66}, {1: 0.4 / 0.85, 3: 0.25 / 0.85, 4: 0.2 / 0.85}),
        ({"top_p": 0.01}, {1: 1.0}),
        ({"min_p": 0.45}, {1: 0.4 / 0.85, 3: 0.25 / 0.85, 4: 0.2 / 0.85}),
        ({"top_k": 3, "top_p": 0.5}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
    ],
)
def test_distributions(options: dict[str, Any], expected: dict[int, float]) -> None:
    found = frequencies(LOGITS, **options)
    assert found.keys() == expected.keys()
    for token, share in expected.items():
        assert abs(found[token] - share) < 0.03, (found, expected)


def test_large_vocabularies_cut_off_the_same_set() -> None:
    logits = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    flat = sampler(size=5000, top_p=0.999)
    ids, weights = flat._candidates(logits)
    p = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")
    count = int(np.searchsorted(np.cumsum(p[order]) / p.sum(), 0.999)) + 1
    assert len(ids) > 1024 and ids.tolist() == order[:count].tolist()
    assert np.allclose(weights, p[order[:count]])
    peaked, _ = sampler(size=5000, top_p=0.2)._candidates(logits)
    assert len(peaked) < 1024 and peaked.tolist() == order[: len(peaked)].tolist()


def test_top_k_prefers_low_ids_among_equals() -> None:
    ids, _ = sampler(top_k=3)._candidates(np.array([0, 5, 1, 5, 5, 5], np.float32))
    assert ids.tolist() == [1, 3, 4]


def test_repetition_penalty_divides_or_multiplies() -> None:
    one = sampler((0, 1), temperature=0, repetition_penalty=2.0)
    assert one.choose(np.array([4, 1, 3, -1, 0, 0, 0, 0], np.float32)) == 2
    assert one.choose(np.array([4, 1, 3, 1.6, 0, 0, 0, 0], np.float32)) == 0  # 2, 0.5, 1.5, 1.6
    negative = sampler((0,), size=2, temperature=0, repetition_penalty=2.0)
    assert negative.choose(np.array([-1, -1.5], np.float32)) == 1


def test_the_seed_decides() -> None:
    def draw(seed: int | None) -> list[int]:
        one = sampler(size=len(LOGITS), temperature=1, seed=seed)
        return [one.choose(LOGITS) for _ in range(40)]

    assert draw(3) == draw(3) != draw(4)
    assert draw(None) != draw(None)


def test_infinities_are_fine_and_nan_is_not() -> None:
    logits = np.array([-np.inf, 1, -np.inf], np.float32)
    assert sampler(size=3, temperature=0.7, seed=0).choose(logits) == 1
    logits[2] = np.nan
    for temperature in (0, 1):
        with pytest.raises(RequestError, match="not numbers"):
            sampler(size=3, temperature=temperature).choose(logits)


@pytest.mark.parametrize("top", [np.inf, -np.inf])
def test_nothing_is_drawn_where_the_largest_logit_is_infinite(top: float) -> None:
    """Its probability would be NaN, and the last token always the one that is drawn."""
    logits = np.array([-np.inf, top, -np.inf], np.float32)
    drawn: list[dict[str, Any]] = [{"temperature": 1}, {"top_k": 2}, {"top_p": 0.5}]
    for options in drawn:
        with pytest.raises(RequestError, match="the largest of the model's logits is infinite"):
            sampler(size=3, **options).choose(logits)
    with pytest.raises(RequestError, match="no token can be drawn"):
        sampler(size=3, top_k=2).choose(logits, -2)
    taken: list[dict[str, Any]] = [{"temperature": 0}, {"top_k": 1}]
    for options in taken:
        one = sampler(size=3, **options)
        assert one.choose(logits) == int(logits.argmax())
        assert one.choose(logits, 1) == 1


def test_what_was_not_asked_for_comes_from_the_model() -> None:
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 7}
    chosen = SamplingParams(top_p=0.5).resolve(config)
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.max_tokens) == (0.6, 0.5, 0, 7)
    greedy = {"do_sample": False, "temperature": 0.6, "top_k": None}
    assert SamplingParams().resolve(greedy).temperature == 0
    assert SamplingParams().resolve({}).temperature == 0
    assert SamplingParams(temperature=0.3).resolve(greedy).temperature == 0.3
    assert SamplingParams(top_k=5).resolve({}).temperature == 1
    assert SamplingParams().resolve({}).max_tokens == 256


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("temperature", float("nan")), ("top_k", 1.5), ("top_k", -1),
     ("top_p", 0), ("top_p", 1.1), ("min_p", -0.1), ("repetition_penalty", 0), ("seed", -1),
     ("max_tokens", 0), ("temperature", "hot"), ("top_p", True)],
)  # fmt: skip
def test_bad_values(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} must be .* not {value!r}"):
        SamplingParams(**{name: value})


def test_stop_texts_may_be_one_or_several() -> None:
    assert SamplingParams(stop="a").stop == ("a",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    with pytest.raises(RequestError, match="must not be empty"):
        SamplingParams(stop=["a", ""])


SPECIAL = st.sampled_from([0.0, -0.0, 1e-30, 2e-30, -np.inf, 1.0, 1.5, -3.0])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(SPECIAL | st.floats(-20, 20, width=32), min_size=1, max_size=40),
    st.integers(0, 50), st.sampled_from([1e-300, 0.3, 1.0, 40.0, 1e300]),
    st.sampled_from([1e-300, 1e-9, 0.5, 0.95, 1.0]), st.sampled_from([0.0, 0.2, 1.0]),
    st.integers(0, 9),
)  # fmt: skip
def test_a_step_draws_the_same(
    values: list[float], top_k: int, temperature: float, top_p: float, min_p: float, seed: int
) -> None:
    """By words that a step is told and whole numbers, where the host takes float64: both may take
    the next token only where the random number lies at the border of the two. Where top_p itself
    lies at a border of two tokens, rounding says which of them is the last."""
    assume(temperature < 1e9 or min_p < 1)  # all weights are 1 in float64, and yet not equal
    logits = np.array([*values, 0.5], np.float32)
    falling = np.sort(logits.astype(np.float64))[::-1][: top_k or None]
    shares = np.cumsum(np.exp((falling - falling[0]) / temperature))
    assume(top_p == 1 or np.abs(shares / shares[-1] - top_p).min() > 1e-6 * top_p)
    options: dict[str, Any] = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
    }  # fmt: skip
    here, there = (sampler(size=len(logits), seed=seed, **options) for _ in range(2))
    nothing = np.full_like(logits, np.nan)  # must not be read
    for _ in range(3):
        draw = there.draw()
        if draw is None:
            assert there.takes_largest and top_k == 1
            continue
        token = there.choose(nothing, chosen_token(logits, draw))
        expected = here.choose(logits)
        if token != expected:
            ids, weights = kept_weights(logits, draw)
            share = (draw[0] & (1 << 64) - 1) / 2**64 * weights.sum()
            borders = np.cumsum(weights)
            assert {token, expected} <= set(ids.tolist())
            assert np.abs(borders - share).min() <= 1e-6 * weights.sum()


def test_a_step_does_not_draw_where_it_cannot_know_the_weights() -> None:
    assert sampler(temperature=1, repetition_penalty=1.1).draw() is None
    assert not sampler(temperature=0, repetition_penalty=1.1).takes_largest
    for options in ({"temperature": 0.0}, {"top_k": 1}):
        greedy = sampler(**options)
        assert greedy.takes_largest and greedy.draw() is None


def test_what_a_step_could_not_choose_is_an_error() -> None:
    options: dict[str, Any]
    for options in ({"top_k": 2}, {"temperature": 0.0}, {"temperature": 1.0}):
        with pytest.raises(RequestError, match="NaN"):
            sampler(**options).choose(np.zeros(8, np.float32), -1)
    with pytest.raises(RequestError, match="infinite"):
        sampler(temperature=1.0).choose(np.zeros(8, np.float32), -2)
