"""What a step is taken to cost, by the plan alone."""

from __future__ import annotations

from typing import Any

import pytest
from toy_model import BLOCK, PLAN

from graphwright.runtime.plan import Plan
from graphwright.runtime.step_cost import StepCost

MB = 1_000_000


def cost_of(read: int, stored: int, position: int = 0) -> StepCost:
    plan: dict[str, Any] = {
        **PLAN,
        "weights": {"bytes": stored, "bytes_per_token": read},
        "kv": {"block_size": BLOCK, "block_bytes": BLOCK * position},
    }
    return StepCost.of(Plan.from_json(plan))


def test_a_step_of_one_token_costs_what_it_reads() -> None:
    found = cost_of(100 * MB, 100 * MB, 40_000)
    assert found.step(1, 0) == 100 * MB
    assert found.step(1, 1000) == 140 * MB
    assert found.step(4, 1000) == (100 + 3 * 100 / 8 + 40) * MB


@pytest.mark.parametrize(
    ("read", "stored", "share"),
    [
        (16 * MB, 16 * MB, 1 / 8),
        (16 * MB - 1, 16 * MB - 1, 3 / 8),
        (95 * MB, 100 * MB, 1 / 8),  # a table of embeddings
        (20 * MB, 100 * MB, 0.8),  # experts
        (5 * MB, 8 * MB, 3 / 8),
        (5 * MB, 10 * MB, 0.5),
    ],
)
def test_what_another_token_shares_of_the_weights(read: int, stored: int, share: float) -> None:
    found = cost_of(read, stored)
    assert found.share == pytest.approx(share)
    assert found.token(0) == pytest.approx(read * share)
    assert found.step(3, 0) - found.step(2, 0) == pytest.approx(found.token(0))


@pytest.mark.parametrize(("size", "least", "most"), [(100 * MB, 1 / 8, 1 / 2), (MB, 3 / 8, 3 / 4)])
def test_behind_a_long_text_another_token_costs_more(size: int, least: float, most: float) -> None:
    found = cost_of(size, size, 50_000)
    ratios = [found.token(n) / found.step(1, n) for n in (0, 1000, 10_000, 10**12)]
    assert ratios == sorted(ratios) and ratios[0] == least and ratios[-1] == pytest.approx(most)
