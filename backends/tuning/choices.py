"""Choices that a lowering leaves open, and what was picked for each.

    picked = context.picks.pick(Choice.of("linear_w8", ("4x1", "4x2"), n=2048, k=5632, rows=512))

Lowering a program asks for all choices it has; untuned, each gets its first candidate. So the
choices of a program are found by lowering it once, and a tuned one is lowered once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Choice", "Picks"]


@dataclass(frozen=True)
class Choice:
    """Candidates for one kernel and one bucket of shapes. The first candidate is the default.

    shape: what the best candidate may depend on, by name. work: bytes or operations of one call,
    for the order in which choices are measured only. All candidates must compute the same values,
    up to the order in which float32 numbers are added.
    """

    kernel: str
    shape: tuple[tuple[str, int | str], ...]
    candidates: tuple[str, ...]
    work: float = field(default=1.0, compare=False)

    def __post_init__(self) -> None:
        assert self.candidates and len(set(self.candidates)) == len(self.candidates), self

    @classmethod
    def of(
        cls, kernel: str, candidates: tuple[str, ...], *, work: float = 1.0, **shape: int | str
    ) -> Choice:
        """With the shape as keywords."""
        return cls(kernel, tuple(shape.items()), candidates, work)

    @property
    def default(self) -> str:
        """What is taken where nothing was measured."""
        return self.candidates[0]

    @property
    def key(self) -> str:
        """The name of kernel and shape, by which people and records know it."""
        return " ".join([self.kernel, *(f"{name}={value}" for name, value in self.shape)])


class Picks:
    """What lowerings ask. picked: candidates by the key of their choice."""

    def __init__(self, picked: Mapping[str, str] | None = None) -> None:
        self._picked = dict(picked or {})
        self.asked: Counter[Choice] = Counter()

    def pick(self, choice: Choice) -> str:
        """The candidate picked for `choice`; the default where none, or one it lacks, was."""
        self.asked[choice] += 1
        found = self._picked.get(choice.key, choice.default)
        return found if found in choice.candidates else choice.default
