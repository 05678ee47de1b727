"""When a draft model's guesses are worth what they cost: by counts alone, so that runs repeat.

A step says some tokens and costs something; whatever adds to both is worth it as long as what it
may say for what it costs is more than what the step says for what it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphwright.runtime.step_cost import StepCost

__all__ = ["Costs", "saving"]

# docs/decisions/0023 says what these were measured by.
_ROUND = 6_000_000  # bytes that could be read while a step of the draft is described and looked at
_READ = 1 / 16  # of the weights: what a token costs in a long step


@dataclass(frozen=True)
class Costs:
    """In bytes, as in runtime/step_cost.py. model, draft: of both models. positions: in front of a
    sequence's newest token, on average.
    """

    model: StepCost
    draft: StepCost
    positions: float

    @property
    def check(self) -> float:
        """Of a guess in the model's step."""
        return self.model.token(self.positions)

    def guess(self, count: int) -> float:
        """Of a guess of each of `count` sequences."""
        return _ROUND + self.draft.step(count, round(count * self.positions))

    def read(self, tokens: int) -> float:
        """Of so many tokens that the draft has not read yet."""
        return _READ * self.draft.weights * tokens

    def best_round(self, hopes: Sequence[float], said: float, cost: float) -> int:
        """How many of some sequences, the likeliest first, should be guessed on together; 0 if none
        are worth it. hopes: how likely each guess is said. The step as it is says `said` tokens and
        costs `cost`.
        """
        best, found = said / cost, 0
        for count, hope in enumerate(hopes, 1):
            said += hope
            rate = said / (cost + self.guess(count) + count * self.check)
            if rate > best:
                best, found = rate, count
        return found

    def lengths(self, rights: Sequence[Sequence[float]], said: float, cost: float) -> list[int]:
        """How many of the guesses of each sequence should be checked, when they have been made.

        rights: how likely each guess is said, falling in each sequence. cost: of the step without
        any of them, and of making them all.
        """
        found = [0] * len(rights)
        every = [(right, number) for number, each in enumerate(rights) for right in each]
        for right, number in sorted(every, reverse=True):
            if right * cost <= self.check * said:
                break
            found[number] += 1
            said, cost = said + right, cost + self.check
        return found


def saving(costs: Costs, hope: float, most: int) -> float:
    """The share of what a token costs a lone sequence that guesses save, up to `most` in a step, if
    each is right as often as `hope` says; 0 or less where they do not pay."""
    alone = cost = costs.model.step(1, round(costs.positions))
    said, right, best = 1.0, 1.0, -1.0
    for _ in range(most):
        right *= hope
        said, cost = said + right, cost + costs.guess(1) + costs.check
        best = max(best, 1 - cost / (alone * said))
    return best
