"""Which of several runs is fastest, on a machine whose speed changes from second to second.

All runs are repeated in turn. A candidate must beat the default by a margin twice: in rounds with
all others, and, as the best of many random numbers is always a good one, in a second contest with
the default alone. Each time both the quotient of the fastest repetitions and the median quotient of
neighbours must show it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["MARGIN", "Finding", "Run", "compare"]

MARGIN = 0.03  # by how much less time a candidate must take
HOPELESS = 1.2  # times as slow as the best after LEAST rounds: not measured any more
LEAST = 4  # rounds of each contest, whatever the time
MOST = 60  # rounds of each contest
CONFIRM = 0.4  # share of the time for the second contest

Run: TypeAlias = Callable[[], float]
Clock: TypeAlias = Callable[[], float]


@dataclass(frozen=True)
class Finding:
    """chosen: the fastest, or the default. gain: the default's time over its. seconds: the fastest
    repetition of each that was measured."""

    chosen: str
    gain: float
    seconds: dict[str, float]


def compare(
    runs: Mapping[str, Run], default: str, seconds: float, *, margin: float = MARGIN,
    clock: Clock = time.perf_counter,
) -> Finding:  # fmt: skip
    """Repeats all `runs`, each of which gives the seconds of one short repetition, for about
    `seconds`. Without a candidate beside `default` nothing is measured."""
    start = clock()
    if len(runs) == 1:
        return Finding(default, 1.0, {})
    for run in runs.values():
        run()  # first calls touch memory for the first time
    all_times = _contest(dict(runs), start + (1 - CONFIRM) * seconds, clock)
    fastest = {name: min(each) for name, each in all_times.items()}
    best = min(fastest, key=lambda name: (fastest[name], name != default))
    if best == default or _gain(all_times, default, best) < 1 / (1 - margin):
        return Finding(default, 1.0, fastest)
    pair = {name: runs[name] for name in (default, best)}
    times = _contest(pair, start + seconds, clock)
    gain = _gain(times, default, best)
    fastest |= {name: min(fastest[name], *each) for name, each in times.items()}
    if gain < 1 / (1 - margin):
        return Finding(default, 1.0, fastest)
    return Finding(best, gain, fastest)


def _contest(
    runs: dict[str, Run], end: float, clock: Clock
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each run, round by round; hopeless ones are dropped on the way."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    left = list(runs)
    for number in range(MOST):
        if number >= LEAST and (clock() >= end or len(left) == 1):
            break
        for name in left if number % 2 == 0 else left[::-1]:
            times[name].append(runs[name]())
        if number + 1 == LEAST:
            best = min(min(each) for each in times.values())
            first, *others = left
            left = [first, *(n for n in others if min(times[n]) < HOPELESS * best)]
    return times


def _gain(times: Mapping[str, Sequence[float]], default: str, best: str) -> float:
    """How many times the default's time is that of `best`, by the more cautious of two measures."""
    pairs = zip(times[default], times[best], strict=False)
    neighbours = statistics.median(slow / fast for slow, fast in pairs)
    return min(neighbours, min(times[default]) / min(times[best]))
