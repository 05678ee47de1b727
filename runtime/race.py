"""Drawing a token by a race, so that models that nearly agree draw the same one nearly always.

Every token waits for a time that its own random number says, the shorter the likelier it is, and
the first one is drawn: a token comes first as often as its probability says. A token's number
follows from the draw's and its id alone. Where another model gives other probabilities to the same
draw, most times change little, and so does who is first: the two differ in at most 2d/(1 + d) of
the draws, where their distributions differ by d in total variation, and no way to draw from both
could do better than d.

Source: Gumbel's maximum as exponential times; as a draft and its model that do not talk to each
other: Daliri, Musco, Suresh (Coupling without Communication, arXiv 2408.07978).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["race", "race_number"]

_RARE = 1e-5  # of the largest weight: less likely tokens race as one, and draw among themselves
_ALL_RARE, _WHICH_RARE = -1, -2  # the numbers by which they do, as ids
# SplitMix64 (Steele, Lea, Flood 2014).
_STEP, _WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def race(number: int, ids: NDArray[Any], weights: NDArray[np.float64]) -> int:
    """One of `ids`, each as often as its weight's share of all.

    number: 64 random bits, the draw's. weights: of probabilities, 0 or more, one above.
    """
    is_common = weights >= _RARE * weights.max()
    common = np.flatnonzero(is_common)
    times = _times(number, ids[common]) / weights[common]
    first = int(times.argmin())
    if len(common) < len(weights):
        rare = np.flatnonzero(~is_common)
        sums = np.cumsum(weights[rare])
        wait, which = _times(number, np.array([_ALL_RARE, _WHICH_RARE]))
        if wait < times[first] * sums[-1]:
            share = np.exp(-which) * sums[-1]
            return int(ids[rare[min(np.searchsorted(sums, share, side="right"), len(rare) - 1)]])
    return int(ids[common[first]])


def race_number(key: int, count: int) -> int:
    """64 random bits for a draw: the one with this `count` of those that have the same key, which
    is as many random bits."""
    bits = key + (count + 1) * _STEP & _WORD
    for shift, factor in _ROUNDS:
        bits = (bits ^ bits >> shift) * factor & _WORD
    return bits


def _times(number: int, ids: NDArray[Any]) -> NDArray[np.float64]:
    """Exponentially distributed, with the mean 1, one of each id."""
    bits = np.uint64(number) + (ids.astype(np.int64).view(np.uint64) + np.uint64(1)) * np.uint64(
        _STEP
    )
    for shift, factor in _ROUNDS:
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(-np.log(((bits >> np.uint64(11)) + 0.5) * 2.0**-53))
