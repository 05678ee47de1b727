"""The best ways through options: as an exhaustive search finds them, and near them when cut."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from graphwright.passes.frontier import Frontier, frontier

Items = list[list[tuple[int, float]]]
_OPTION = st.tuples(st.integers(0, 40), st.integers(0, 64).map(lambda n: n / 16))  # sums are exact
_ITEMS = st.lists(st.lists(_OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def every_way(items: Items) -> list[tuple[int, float]]:
    """(cost, loss) of all of them."""
    return [
        (sum(cost for cost, _ in way), sum(loss for _, loss in way))
        for way in itertools.product(*items)
    ]


def check_choices(found: Frontier, items: Items) -> None:
    """Each way costs and loses what its options do."""
    for way in range(len(found)):
        taken = [options[i] for options, i in zip(items, found.choice(way), strict=True)]
        assert sum(cost for cost, _ in taken) == found.costs[way]
        assert math.isclose(sum(loss for _, loss in taken), found.losses[way], abs_tol=1e-12)


@given(_ITEMS, st.integers(0, 200), st.integers(0, 320).map(lambda n: n / 16))
def test_the_best_are_those_of_an_exhaustive_search(
    items: Items, most_cost: int, most_loss: float
) -> None:
    found, ways = frontier(items), every_way(items)
    check_choices(found, items)
    affordable = [loss for cost, loss in ways if cost <= most_cost]
    way = found.nearest(most_cost)
    assert (None if way is None else found.losses[way]) == min(affordable, default=None)
    good = [cost for cost, loss in ways if loss <= most_loss]
    way = found.cheapest(most_loss)
    assert (None if way is None else found.costs[way]) == min(good, default=None)


@given(_ITEMS)
def test_no_way_is_dominated_and_all_that_are_not_are_there(items: Items) -> None:
    found, ways = frontier(items), set(every_way(items))
    best = {
        (cost, loss)
        for cost, loss in ways
        if not any(c <= cost and other <= loss and (c, other) != (cost, loss) for c, other in ways)
    }
    assert set(zip(found.costs.tolist(), found.losses.tolist(), strict=True)) == best


@given(_ITEMS, st.integers(3, 6))
def test_where_ways_are_cut_what_is_kept_is_exact_and_the_cheapest_stays(
    items: Items, most: int
) -> None:
    found = frontier(items, most)
    assert 1 <= len(found) <= most
    check_choices(found, items)
    assert found.costs[0] == min(cost for cost, _ in every_way(items))
    assert (found.costs[1:] > found.costs[:-1]).all()
    assert (found.losses[1:] < found.losses[:-1]).all()


def test_many_items_stay_within_memory_and_near_the_best() -> None:
    """200 weights of sizes that are all different: the sums are more than can be kept."""
    items = [
        [(bits * (1000 + 7 * i), (1 + i % 13) * 4.0**-bits) for bits in (4, 5, 8, 16)]
        for i in range(200)
    ]
    found = frontier(items)
    assert len(found) <= 1 << 14
    most = int(6 * sum(1000 + 7 * i for i in range(200)))
    way = found.nearest(most)
    assert way is not None and found.costs[way] <= most
    check_choices(frontier(items[:6]), items[:6])
    # What the same options would lose if they could be mixed is a bound from below: Lagrange.
    bound = max(
        sum(min(loss + price * cost for cost, loss in options) for options in items) - price * most
        for price in (1.1**-p for p in range(80, 280))
    )
    assert found.losses[way] <= 1.01 * bound
