"""Draws by a race: as often as the weights say, and mostly alike where the weights are."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphwright.runtime.logit_changes import LogitChanges
from graphwright.runtime.race import race
from graphwright.runtime.sampler import Sampler
from graphwright.runtime.sampling_params import SamplingParams

DRAWS = 4000


def drawn(weights: NDArray[np.float64], seed: int, count: int = DRAWS) -> list[int]:
    random, ids = Random(seed), np.arange(len(weights))
    return [race(random.getrandbits(64), ids, weights) for _ in range(count)]


def deviation(shares: NDArray[np.float64]) -> Any:
    """Five standard deviations of a share of DRAWS draws."""
    return 5 * np.sqrt(shares * (1 - shares) / DRAWS)


@pytest.mark.parametrize(
    "weights", [[0.1, 0.4, 0.05, 0.25, 0.2], [7.0], [0.0, 3.0, 0.0, 1.0], [1e300, 1e300], [1e-300]]
)
def test_tokens_come_as_often_as_their_weights_say(weights: list[float]) -> None:
    shares = np.array(weights) / max(weights)
    shares /= shares.sum()
    counts = Counter(drawn(np.array(weights), seed=1))
    found = np.array([counts[token] / DRAWS for token in range(len(weights))])
    assert (np.abs(found - shares) <= deviation(shares)).all(), (found, shares)


def test_rare_tokens_share_what_is_theirs() -> None:
    """Each is below a hundred-thousandth of the likeliest; together they are a third."""
    weights = np.full(60_001, 5e-6)
    weights[30_000] = 0.6
    weights[30_001:] *= 1.5
    tokens = np.array(drawn(weights, seed=2))
    shares = np.array([weights[:30_000].sum(), 0.6, weights[30_001:].sum()]) / weights.sum()
    found = np.array([(tokens < 30_000).mean(), (tokens == 30_000).mean(),
                      (tokens > 30_000).mean()])  # fmt: skip
    assert (np.abs(found - shares) <= deviation(shares)).all(), (found, shares)
    rare = tokens[tokens != 30_000]
    assert len(set(rare.tolist())) > 0.97 * len(rare), "no rare token is preferred"


def test_an_id_races_as_itself_wherever_it_stands() -> None:
    weights = np.array([0.5, 0.3, 0.2])
    for seed in range(200):
        number = Random(seed).getrandbits(64)
        first = race(number, np.array([40, 7, 9]), weights)
        assert first == race(number, np.array([9, 40, 7]), weights[[2, 0, 1]])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.05, 0.3, 1.0, 3.0]))
def test_two_models_that_nearly_agree_draw_alike(seed: int, noise: float) -> None:
    """As often as Daliri and others prove, and never more than any way to draw could."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal(50) * 2
    both = [np.exp(each) for each in (logits, logits + noise * random.standard_normal(50))]
    mine, its = (each / each.sum() for each in both)
    distance = np.abs(mine - its).sum() / 2
    pairs = zip(drawn(both[0], seed), drawn(both[1], seed), strict=True)
    alike = sum(one == other for one, other in pairs) / DRAWS
    slack = deviation(np.array(0.5))
    assert (1 - distance) / (1 + distance) - slack <= alike <= 1 - distance + slack


RULES: list[dict[str, Any]] = [
    {"temperature": 1.0}, {"temperature": 0.5, "top_k": 3}, {"top_p": 0.6}, {"min_p": 0.45},
    {"temperature": 2.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
]  # fmt: skip


def sampler(rule: dict[str, Any], seed: int, races: bool) -> Sampler:
    sampling = SamplingParams(**rule, seed=seed).resolve({})
    changes = LogitChanges(sampling, 9)
    return Sampler(sampling, 9, [1], None if changes.empty else changes, races)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_who_looks_ahead_sees_what_comes_and_changes_nothing(rule: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    for races in (False, True):
        one, alone = sampler(rule, 3, races), sampler(rule, 3, races)
        for _ in range(6):
            rows = random.standard_normal((4, 9)).astype(np.float32)
            ahead = one.ahead()
            seen = [ahead.choose(row) for row in rows]
            said = [one.choose(row) for row in rows]
            assert seen == said == [alone.choose(row) for row in rows]


@pytest.mark.parametrize("rule", RULES[:4], ids=str)
def test_a_race_draws_from_what_the_rule_leaves(rule: dict[str, Any]) -> None:
    assert sampler(rule, 5, races=True).draw() is None, "a step on a GPU draws by sums"
    logits = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2, 0, 0, 0, 0], np.float32) + 1e-30)
    racing, summing = (sampler(rule, 5, races) for races in (True, False))
    found = [Counter(each.choose(logits) for _ in range(DRAWS)) for each in (racing, summing)]
    assert found[0].keys() == found[1].keys()
    for token, count in found[1].items():
        assert abs(found[0][token] - count) <= 2 * DRAWS * deviation(np.array(0.5))
