"""All the best ways of taking one option of each item: multiple-choice knapsacks, solved together.

Options cost something and lose something. Items are added one after the other to a list of what can
be had: of two ways, one that costs no more and loses no more is kept (dynamic programming by
dominance; H. Kellerer, U. Pferschy, D. Pisinger, Knapsack Problems, 2004, section 11.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_WAYS", "Frontier", "frontier"]

MOST_WAYS = 1 << 14
"""That are kept after an item. Where there are more, they are cut into so many equal steps of cost,
and of each step the way that loses least is kept: what is found then is near the best, and what it
costs and loses is still exact."""


@dataclass(frozen=True)
class Frontier:
    """Ways by increasing cost, int64, and decreasing loss, float64. No two are better than each
    other in one thing and worse in none."""

    costs: NDArray[np.int64]
    losses: NDArray[np.float64]
    _steps: tuple[tuple[NDArray[np.int32], NDArray[np.int16]], ...]

    def __len__(self) -> int:
        return len(self.costs)

    def choice(self, way: int) -> list[int]:
        """Which option of each item is taken."""
        taken = []
        for parents, options in reversed(self._steps):
            taken.append(int(options[way]))
            way = int(parents[way])
        return taken[::-1]

    def cheapest(self, most_loss: float) -> int | None:
        """The cheapest way that loses no more; None if there is none."""
        found = int(np.searchsorted(-self.losses, -most_loss, side="left"))
        return found if found < len(self) else None

    def nearest(self, most_cost: int) -> int | None:
        """The way that loses least of those that cost no more; None if there is none."""
        found = int(np.searchsorted(self.costs, most_cost, side="right")) - 1
        return found if found >= 0 else None


def frontier(items: Sequence[Sequence[tuple[int, float]]], most: int = MOST_WAYS) -> Frontier:
    """The ways through `items`, each of which has options (cost, loss), neither negative."""
    costs, losses = np.zeros(1, np.int64), np.zeros(1, np.float64)
    steps = []
    for options in items:
        count = len(options)
        more_cost = np.array([cost for cost, _ in options], np.int64)
        more_loss = np.array([loss for _, loss in options], np.float64)
        costs = (costs[:, None] + more_cost).reshape(-1)
        losses = (losses[:, None] + more_loss).reshape(-1)
        kept = _thinned(costs, _undominated(costs, losses), most)
        costs, losses = costs[kept], losses[kept]
        steps.append(((kept // count).astype(np.int32), (kept % count).astype(np.int16)))
    return Frontier(costs, losses, tuple(steps))


def _undominated(costs: NDArray[np.int64], losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of the ways than which none is better, by increasing cost."""
    order = np.lexsort((losses, costs))  # stable: of equals the first option
    ordered = losses[order]
    best = np.minimum.accumulate(ordered)
    better = np.ones(len(order), bool)
    better[1:] = ordered[1:] < best[:-1]
    kept: NDArray[np.int64] = order[better]
    return kept


def _thinned(costs: NDArray[np.int64], kept: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of them: the cheapest, and the last one of each step of cost."""
    if len(kept) <= most:
        return kept
    found = costs[kept]
    step = (found - found[0]) * (most - 2) // (found[-1] - found[0])
    last = np.ones(len(kept), bool)
    last[:-1] = step[1:] != step[:-1]
    last[0] = True
    thinned: NDArray[np.int64] = kept[last]
    return thinned
