"""Tuning of a program while it is compiled: what is measured, remembered, and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from graphwright.backends.tuning import Picks, Records, Tuned, tune
from graphwright.ir.errors import BackendError
from graphwright.ir.program import Program
from graphwright.machine_code import CodeGenerator
from graphwright.runtime.user_cache import cache_folder

__all__ = ["check_budget", "describe_tuned", "picks_of", "tune_program"]


def tune_program(
    program: Program, generator: CodeGenerator, budget: float,
    progress: Callable[[float, str], None],
) -> list[Tuned]:  # fmt: skip
    """Measures what `program` leaves open for `budget` seconds, beside what earlier runs found.

    Raises BackendError for a target that is not tuned.
    """
    if generator.choices is None:
        raise BackendError("this target is not tuned: compile without --tune.")
    asked, rig = generator.choices(program)
    records = Records(cache_folder() / "tuning", rig.machine)
    return tune(asked, rig, budget, records=records, progress=progress)


def check_budget(seconds: float | None) -> None:
    """Raises BackendError for a budget of tuning that is not positive."""
    if seconds is not None and not seconds > 0:
        raise BackendError(f"the budget for tuning must be more than 0 seconds, not {seconds:g}.")


def picks_of(tuned: Iterable[Tuned]) -> Picks:
    """What lowerings are to take."""
    return Picks({each.choice.key: each.finding.chosen for each in tuned})


def describe_tuned(tuned: Iterable[Tuned]) -> list[dict[str, Any]]:
    """The content of an artifact's tuning.json."""
    return [
        {
            "kernel": each.choice.kernel, "shape": dict(each.choice.shape), "calls": each.calls,
            "default": each.choice.default, "chosen": each.finding.chosen,
            "gain": each.finding.gain, "source": each.source, "seconds": each.finding.seconds,
        }
        for each in tuned
    ]  # fmt: skip
