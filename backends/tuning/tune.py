"""Measures the choices of a program within a budget of seconds, the weightiest first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from graphwright.backends.tuning.choices import Choice
from graphwright.backends.tuning.compare import Clock, Finding, Run, compare
from graphwright.backends.tuning.records import Records

__all__ = ["Progress", "Rig", "Tuned", "tune"]

LONGEST = 4.0  # seconds that one choice may take for its repetitions
Progress = Callable[[float, str], None]  # share of the budget that is spent, what is measured


class Rig(Protocol):
    """What a backend supplies: candidates of a choice, made ready to be timed."""

    @property
    def machine(self) -> str:
        """What the figures hold for; the name of the records."""
        ...

    def prepare(self, choice: Choice) -> AbstractContextManager[Mapping[str, Run]]:
        """A run for each candidate: every call is one short repetition (some milliseconds), in a
        state of the caches as in a real step, and gives its seconds. A candidate that cannot run
        here is left out; the default never is."""
        ...


@dataclass(frozen=True)
class Tuned:
    """One choice of a program: what was found, and how.

    calls: how often the program asks for it. source: ``measured`` now, ``recorded`` earlier, or
    ``skipped``, as the budget was spent: then it has the default.
    """

    choice: Choice
    calls: int
    finding: Finding
    source: Literal["measured", "recorded", "skipped"]


def tune(
    asked: Mapping[Choice, int],
    rig: Rig,
    budget: float,
    *,
    records: Records | None = None,
    progress: Progress = lambda share, text: None,
    clock: Clock = time.perf_counter,
) -> list[Tuned]:
    """Finds a candidate for each choice in `asked` (choice to number of calls).

    budget: seconds in all, preparing included; the last choice may exceed it by one preparation and
    its fewest repetitions. What `records` know costs nothing. In the order of calls x work.
    """
    start, found = clock(), []
    order = sorted((c for c in asked if len(c.candidates) > 1), key=lambda c: -asked[c] * c.work)
    known = {choice: records.find(choice) for choice in order} if records else {}
    left = sum(known.get(choice) is None for choice in order)
    for choice in order:
        finding, calls = known.get(choice), asked[choice]
        if finding is not None:
            found.append(Tuned(choice, calls, finding, "recorded"))
            continue
        spent = clock() - start
        if spent >= budget:
            nothing = Finding(choice.default, 1.0, {})
            found.append(Tuned(choice, calls, nothing, "skipped"))
            continue
        progress(spent / budget, choice.key)
        end = clock() + min(LONGEST, (budget - spent) / left)
        with rig.prepare(choice) as runs:
            finding = compare(runs, choice.default, max(0.0, end - clock()), clock=clock)
        if records is not None:
            records.keep(choice, finding)
        found.append(Tuned(choice, calls, finding, "measured"))
        left -= 1
    progress(1.0, "")
    return found
