"""Alternated measurements: A B C A B C …, with a read probe between any two.

Memory bandwidth of a shared machine swings within seconds, so a figure means something only beside
the probe next to it, and a comparison only in the ratio of neighbours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from probe import Probe

__all__ = ["Measurement", "Series", "alternate"]


@dataclass
class Series:
    """What one runtime measured, round by round. values: tokens/s (or seconds, where stated).

    probes: the mean of what the probe read just before and just after each, GB/s. facts: bits,
    ours, weight_bytes and whatever else the tables show.
    """

    facts: dict[str, Any]
    values: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)


@dataclass
class Measurement:
    """One scenario with one shape: series by the runtime's title. `parameters` say what was asked;
    `notes` who was left out and why."""

    scenario: str
    shape: str
    parameters: dict[str, Any]
    series: dict[str, Series] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def alternate(
    measurement: Measurement,
    runs: Mapping[str, tuple[dict[str, Any], Callable[[], float]]],
    rounds: int,
    probe: Probe,
) -> Measurement:
    """Fills `measurement` by `rounds` rounds over `runs`: title to (facts, what to measure)."""
    for title, (facts, _) in runs.items():
        measurement.series[title] = Series(facts)
    before = probe.measure()
    for number in range(rounds):
        for title, (_, run) in runs.items():
            value = run()
            after = probe.measure()
            measurement.series[title].values.append(value)
            measurement.series[title].probes.append((before + after) / 2)
            before = after
        print(
            f"  {measurement.shape} {measurement.scenario}: round {number + 1} of {rounds}",
            file=sys.stderr,
        )
    return measurement
