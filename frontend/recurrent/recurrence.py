"""A model that carries states: which of its modules do, and how it is traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from graphwright.frontend.recurrent.check_steps import check_steps, with_limits
from graphwright.frontend.recurrent.decoding_run import decoding_run
from graphwright.frontend.recurrent.held_tensors import Path
from graphwright.frontend.recurrent.module_calls import Call
from graphwright.frontend.recurrent.step_units import find_stepped
from graphwright.frontend.recurrent.stepping import SteppedModule, stepped
from graphwright.frontend.stateless import StatelessForward

__all__ = ["Recurrence", "find_recurrence"]


@dataclass(frozen=True)
class Recurrence:
    """modules: those that carry states. sequence: how each module is called without a cache."""

    modules: list[SteppedModule]
    sequence: dict[str, list[Call]]

    @contextmanager
    def stepped(self) -> Iterator[None]:
        """While open, the modules do what they are given token by token, and mark their states."""
        with stepped(self.modules):
            yield

    def places(self) -> dict[int, int]:
        """By the id of a module's dict, the index by which it finds its states: the only number in
        their paths that tells modules of one class apart."""
        found: dict[int, int] = {}
        for unit in self.modules:
            alike = [other for other in self.modules if type(other.module) is type(unit.module)]
            numbers = {
                next(iter(own))
                for own in (_numbers(path, _paths(alike)) for path in unit.states)
                if len(own) == 1
            }
            if len(numbers) == 1:
                found[id(vars(unit.module))] = numbers.pop()
        return found

    def check(self) -> None:
        """Raises FrontendError when a module does something else for a whole sequence."""
        check_steps(self.modules, self.sequence)


def find_recurrence(forward: StatelessForward) -> Recurrence | None:
    """How the model of `forward` decodes; None when it carries no states but keys and values.

    Raises FrontendError for states that belong to no module that could be run by itself.
    """
    run = decoding_run(forward)
    if run is None:
        return None
    return Recurrence(with_limits(find_stepped(forward.model, run), run.sequence), run.sequence)


def _paths(units: list[SteppedModule]) -> set[Path]:
    return {path for unit in units for path in unit.states}


def _numbers(path: Path, others: set[Path]) -> set[int]:
    """The numbers in `path` without which it would be another of `others`."""

    def without(other: Path, place: int) -> Path:
        return other[:place] + other[place + 1 :]

    return {
        part
        for place, part in enumerate(path)
        if type(part) is int
        and any(without(o, place) == without(path, place) for o in others - {path})
    }
