"""Recorded results and what is computed from them: medians, bests, ratios, shares of the probe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["Ratio", "Results", "Row", "ratio"]


@dataclass(frozen=True)
class Row:
    """One runtime in one measurement. values: tokens/s, or seconds; probes: GB/s beside each."""

    title: str
    facts: dict[str, Any]
    values: tuple[float, ...]
    probes: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return median(self.values)

    @property
    def best(self) -> float:
        """The largest value."""
        return max(self.values)

    @property
    def ours(self) -> bool:
        """Is it graphwright?"""
        return bool(self.facts["ours"])

    @property
    def bits(self) -> int:
        """The bits of its weights: what it is compared at."""
        return int(self.facts["bits"])

    @property
    def share(self) -> float | None:
        """Median of weight bytes per token * tokens/s / probe: how near it comes to the memory."""
        size = self.facts.get("weight_bytes")
        if not size:
            return None
        pairs = zip(self.values, self.probes, strict=True)
        return median(size * value / 1e9 / probe for value, probe in pairs)


@dataclass(frozen=True)
class Ratio:
    """a : b by medians, by bests, and the median over rounds of the ratio of neighbours.

    spread: the interquartile range of the latter over itself, the noise of one round.
    """

    medians: float
    bests: float
    pairwise: float
    spread: float


def ratio(a: Row, b: Row) -> Ratio:
    """How many times `b` is `a`. Both were alternated, so values of equal number are neighbours."""
    pairs = sorted(x / y for x, y in zip(a.values, b.values, strict=True))
    quarter = len(pairs) // 4
    middle = median(pairs)
    return Ratio(
        a.median / b.median,
        a.best / b.best,
        middle,
        (pairs[-1 - quarter] - pairs[quarter]) / middle,
    )


class Results:
    """One run, as run.py wrote it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw: dict[str, Any] = json.loads(path.read_text())

    def measurements(self, scenario: str) -> Iterator[tuple[dict[str, Any], list[Row]]]:
        """(the measurement without its series, its rows) of every measurement of a scenario."""
        for each in self.raw["measurements"]:
            if each["scenario"] == scenario:
                yield (
                    each,
                    [
                        Row(title, row["facts"], tuple(row["values"]), tuple(row["probes"]))
                        for title, row in each["series"].items()
                    ],
                )

    def rows(self, scenario: str, shape: str, **parameters: Any) -> list[Row]:
        """All rows of a scenario with a shape, of whatever group."""
        return [
            row
            for each, rows in self.measurements(scenario)
            if each["shape"] == shape and parameters.items() <= each["parameters"].items()
            for row in rows
        ]

    def best(
        self, scenario: str, shape: str, wanted: Callable[[Row], bool], **parameters: Any
    ) -> Row | None:
        """The row with the highest median among those wanted."""
        found = [row for row in self.rows(scenario, shape, **parameters) if wanted(row)]
        return max(found, key=lambda row: row.median, default=None)

    @property
    def probes(self) -> list[float]:
        """Everything that the probe read, GB/s."""
        return [
            p for m in self.raw["measurements"] for s in m["series"].values() for p in s["probes"]
        ]

    @property
    def versions(self) -> list[str]:
        """Of all runtimes, each once."""
        found = {
            row["facts"]["version"]
            for each in self.raw["measurements"]
            for row in each["series"].values()
            if "version" in row["facts"]
        }
        return sorted({part for text in found for part in text.split(", ")})
