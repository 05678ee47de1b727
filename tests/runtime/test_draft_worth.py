"""When guesses of a draft are worth it, by what they cost and how often they are right."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphwright.runtime.draft_text import Acceptance, Share
from graphwright.runtime.draft_worth import Costs, saving
from graphwright.runtime.step_cost import StepCost

GB = 1e9


def costs(draft: float, positions: float = 0.0, share: float = 1 / 8) -> Costs:
    """Of a model that reads 1 GB a token, and a draft that reads so many."""
    return Costs(StepCost(GB, 1e5, share, 0.5), StepCost(draft * GB, 1e4, 1 / 8, 0.5), positions)


RIGHTS = st.lists(
    st.lists(st.floats(0.01, 1), max_size=7).map(lambda each: sorted(each, reverse=True)),
    min_size=1, max_size=4,
)  # fmt: skip


@given(RIGHTS, st.integers(1, 7), st.floats(1, 3), st.sampled_from([0.02, 0.125, 0.375]))
def test_guesses_are_checked_as_far_as_that_says_most(
    rights: list[list[float]], said: int, cost: float, share: float
) -> None:
    found = costs(0.1, share=share)
    lengths = found.lengths(rights, said, cost * GB)

    def rate(chosen: tuple[int, ...] | list[int]) -> float:
        gain = sum(sum(each[:count]) for each, count in zip(rights, chosen, strict=True))
        return (said + gain) / (cost + share * sum(chosen))

    ways = itertools.product(*(range(len(each) + 1) for each in rights))
    assert rate(lengths) >= max(map(rate, ways)) * (1 - 1e-12)


@given(
    st.lists(st.floats(0.01, 1), max_size=7).map(lambda each: sorted(each, reverse=True)),
    st.floats(1, 8), st.floats(1, 3), st.sampled_from([0.05, 0.2, 0.6]),
)  # fmt: skip
def test_a_round_takes_as_many_texts_as_pay(
    hopes: list[float], said: float, cost: float, draft: float
) -> None:
    found = costs(draft)
    rates = [said / cost]
    for count in range(1, len(hopes) + 1):
        price = 0.006 + draft * (1 + (count - 1) / 8) + count / 8
        rates.append((said + sum(hopes[:count])) / (cost + price))
    assert rates[found.best_round(hopes, said, cost * GB)] == pytest.approx(max(rates))


def test_what_a_lone_text_saves() -> None:
    """Three tokens for a step, two guesses and two rows; nothing where guesses are dear."""
    assert saving(costs(0.1), 1.0, 2) == pytest.approx(1 - (1 + 2 * (0.106 + 1 / 8)) / 3)
    for most in (1, 2, 3, 7):
        assert saving(costs(0.1), 0.9, most) <= saving(costs(0.1), 0.9, 7)
    assert saving(costs(0.1), 0.2, 7) < 0 < saving(costs(0.1), 0.3, 7)
    assert saving(costs(0.9), 1.0, 7) < 0
    assert saving(costs(0.3), 0.7, 7) > saving(costs(0.3, positions=1e5), 0.7, 7), "long texts"


def test_a_long_prompt_costs_the_draft_something() -> None:
    assert costs(0.1).read(160) == pytest.approx(GB)
    assert costs(0.1).guess(1) == pytest.approx(0.106 * GB)
    assert costs(0.1, positions=1000).guess(2) == pytest.approx((0.006 + 0.1125 + 0.02) * GB)


def test_a_share_is_of_the_newest_guesses() -> None:
    share = Share(0.6, 16)
    share.learn(False)
    assert share.value == pytest.approx(0.6 * 4 / 5), "the start is worth four guesses"
    for _ in range(50):
        share.learn(True)
    assert share.value > 0.95
    for number in range(16):
        share.learn(number % 2 == 0)
    assert 0.5 < share.value < 0.8


def test_what_a_text_knows_begins_as_what_all_have_shown() -> None:
    every = Acceptance(64)
    for _ in range(200):
        every.learn(0.99, True)
        every.learn(0.3, False)
    text = Acceptance(16, every)
    assert text.mean.value == every.mean.value
    assert text.share(0.98).value > 0.95 and text.share(0.25).value < 0.05
    assert text.share(0.7).value == 0.65, "of which nothing has been seen"
    text.learn(0.3, True)
    assert every.share(0.3).value < 0.05 < text.share(0.3).value
