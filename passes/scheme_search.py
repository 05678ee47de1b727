"""From what each weight loses to a choice for all of them that keeps to a budget, by measurement.

Losses of single weights are added up to predict the loss of many. That is right for small and
unrelated errors, and it is not known here how small: so the whole is measured on tokens of its own,
and where it is off the prediction is scaled and the choice made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from graphwright.ir.errors import BudgetError
from graphwright.ir.float_scheme import AnyScheme
from graphwright.ir.program import Program
from graphwright.ir.scheme_choice import Trial, WayPoint
from graphwright.passes.auto_recipe import AutoRecipe, Budget, ChosenRecipe
from graphwright.passes.base import PassContext, in_context
from graphwright.passes.dealt_tokens import DealtTokens
from graphwright.passes.divergence import Divergence, Reference
from graphwright.passes.frontier import Frontier, frontier
from graphwright.passes.narrow_weights import NarrowWeights
from graphwright.passes.quantize_weights import QuantizeWeights
from graphwright.passes.scheme_options import (
    Decision,
    fixed_bytes,
    packed_bytes,
    read_bytes,
    stored_bytes,
)
from graphwright.passes.sensitivity import Loss

__all__ = ["ROUNDS", "Tried", "SchemeSearch"]

ROUNDS = 4  # choices that are tried for one budget, and one more if none of them keeps to it
_NEAR, _AIM = 0.9, 0.97  # of a budget: enough not to try for a faster one; what to try for
_LEAST_SCALE = 1e-3
_STORED_SHARE = 64  # a byte that is only stored counts as this part of one that decoding reads
_LINE_POINTS = 40


@dataclass(frozen=True)
class Tried:
    """A choice that was made, as a program. schemes: of each decision."""

    program: Program
    schemes: tuple[AnyScheme | None, ...]
    rewrites: int
    predicted: float
    measured: Divergence
    notes: list[str]
    misses: list[str]


class SchemeSearch:
    """Choices for `program`, whose `decisions` lose what `losses` say. tell: hears what is done."""

    def __init__(
        self,
        program: Program,
        auto: AutoRecipe,
        budget: Budget,
        decisions: Sequence[Decision],
        losses: Sequence[Mapping[AnyScheme | None, Loss]],
        tokens: DealtTokens,
        tell: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._program, self._auto, self._budget = program, auto, budget
        self._decisions, self._losses, self._tokens, self._tell = decisions, losses, tokens, tell
        self._elements = sum(each.elements for each in decisions)
        self._ways = self._frontier()
        self._reference: Reference | None = None
        self.trials: list[Trial] = []

    def find(self) -> Tried:
        """The best choice within the budget. Raises BudgetError if there is none."""
        if self._budget.max_kl is not None:
            return self._fastest(self._budget.max_kl)
        way = self._ways.nearest(self._most_cost())
        if way is None:
            raise BudgetError(self._too_small())
        return self._try(way, accepted=lambda _: True)

    def line(self) -> tuple[WayPoint, ...]:
        """Some of the best choices, at about equal steps of what they cost."""
        first, last = int(self._ways.costs[0]), int(self._ways.costs[-1])
        steps = range(_LINE_POINTS)
        wanted = [first + (last - first) * each // (_LINE_POINTS - 1) for each in steps]
        ways = dict.fromkeys(self._ways.nearest(cost) for cost in wanted)
        return tuple(self._point(way) for way in ways if way is not None)

    # ---- the budgets

    def _frontier(self) -> Frontier:
        return frontier(
            [
                [
                    (self._cost(each, scheme), losses[scheme].kl) for scheme in each.schemes
                ]
                for each, losses in zip(self._decisions, self._losses, strict=True)
            ]
        )  # fmt: skip

    def _cost(self, decision: Decision, scheme: AnyScheme | None) -> int:
        """What is to be small: bytes of the file, or what bounds decoding, the bytes it reads."""
        if self._budget.max_size is not None:
            return packed_bytes(decision.weight.shape, scheme)
        stored = stored_bytes(decision.weight.shape, scheme)
        if self._budget.bits is not None:
            return stored
        return _STORED_SHARE * read_bytes(decision, scheme) + stored

    def _most_cost(self) -> int:
        if self._budget.bits is not None:
            return int(self._budget.bits * self._elements / 8 + 1e-6)  # 4.5 bits are 4.5 bits
        assert self._budget.max_size is not None
        return self._budget.max_size - fixed_bytes(self._program, list(self._decisions))

    def _too_small(self) -> str:
        least = self._point(0)
        text = f"the candidates ({self._auto}) give {least.bits:.2f} bits a weight at least"
        if self._budget.bits is not None:
            return (
                f"bits={self._budget.bits:g} cannot be met: {text}. Allow as many, or name others."
            )
        size = int(self._ways.costs[0]) + fixed_bytes(self._program, list(self._decisions))
        return (
            f"max_size={self._budget.max_size} cannot be met: {text}, with which all weights take "
            f"{size} bytes. Allow as many, or name others."
        )

    def _fastest(self, most: float) -> Tried:
        best: Tried | None = None
        lowest, highest = -1, len(self._ways)  # tried: too much is lost; not too much
        scale = 1 / _AIM  # by how much more is lost than was predicted
        for _ in range(ROUNDS):
            way = self._ways.cheapest(most / scale)
            way = len(self._ways) - 1 if way is None else way
            way = max(way, lowest + 1)
            if way >= highest:
                break
            tried = self._try(way, accepted=lambda found: found.upper <= most)
            lost = tried.measured.upper
            if lost <= most:
                best, highest = tried, way
                if lost >= _NEAR * most or not tried.predicted:
                    break
                scale = max(lost / tried.predicted, _LEAST_SCALE) / _AIM
            else:
                lowest = way
                scale = lost / tried.predicted / _AIM if tried.predicted else scale
        if best is None and lowest < len(self._ways) - 1:
            last = self._try(len(self._ways) - 1, accepted=lambda found: found.upper <= most)
            best = last if last.measured.upper <= most else None
        if best is None:
            least = self.trials[-1]
            raise BudgetError(
                f"max_kl={most:g} cannot be met: the candidates ({self._auto}) lose "
                f"{least.measured:.3g} ± {least.error:.1g} nats a token at least, with "
                f"{least.bits:.2f} bits a weight. "
                "Allow as much, or name one that loses less; f32 loses nothing."
            )
        return best

    # ---- one choice

    def _schemes(self, way: int) -> tuple[AnyScheme | None, ...]:
        taken = self._ways.choice(way)
        return tuple(d.schemes[i] for d, i in zip(self._decisions, taken, strict=True))

    def _point(self, way: int) -> WayPoint:
        pairs = list(zip(self._decisions, self._schemes(way), strict=True))
        stored = sum(stored_bytes(each.weight.shape, scheme) for each, scheme in pairs)
        read = sum(read_bytes(each, scheme) for each, scheme in pairs)
        bits = round(8 * stored / self._elements, 4)
        return WayPoint(bits, stored, read, rounded(float(self._ways.losses[way])))

    def _try(self, way: int, accepted: Callable[[Divergence], bool]) -> Tried:
        """The program with that choice, rounded as it will be, and what it loses."""
        point, schemes = self._point(way), self._schemes(way)
        self._tell(f"try {point.bits:.2f} bits")
        if self._reference is None:
            self._reference = Reference(self._program, self._tokens.held_out)
        names = (each.name for each in self._decisions)
        chosen = {
            name: scheme
            for name, scheme, each in zip(names, schemes, self._decisions, strict=True)
            if not each.fixed
        }
        recipe = ChosenRecipe(None, self._auto.fixed, chosen)
        program, context = self._program.copy(), PassContext()
        with in_context(context):
            rewrites = NarrowWeights(recipe).run(program)
            rewrites += QuantizeWeights(recipe, self._tokens.rounding).run(program)
        program.clean()
        found = self._reference.compare(program)
        self.trials.append(
            Trial(
                point.kl, rounded(found.mean), rounded(found.error), point.bits, point.bytes,
                point.read, accepted(found),
            )
        )  # fmt: skip
        return Tried(program, schemes, rewrites, point.kl, found, context.notes, context.misses)


def rounded(number: float) -> float:
    """To four digits: what is recorded, and chosen by, is not to hang on the last bits of a sum."""
    return float(f"{number:.4g}")
