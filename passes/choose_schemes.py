"""A scheme for each weight, chosen by what it costs and what the model loses by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from graphwright.ir.errors import PassError
from graphwright.ir.float_scheme import AnyScheme
from graphwright.ir.program import Program
from graphwright.ir.scheme_choice import SchemeChoice, SchemeOption, WeightChoice
from graphwright.passes.auto_recipe import AutoRecipe, Budget
from graphwright.passes.base import Exactness, Pass, Stage, current_context
from graphwright.passes.calibration import Calibration
from graphwright.passes.dealt_tokens import DealtTokens, deal
from graphwright.passes.recipe import Recipe
from graphwright.passes.scheme_options import Decision, decisions_of, read_bytes, stored_bytes
from graphwright.passes.scheme_search import SchemeSearch, Tried, rounded
from graphwright.passes.self_written_tokens import SelfWritten
from graphwright.passes.sensitivity import Loss, affordable, measure_losses

__all__ = ["ChooseSchemes"]


@dataclass(frozen=True)
class ChooseSchemes(Pass):
    """gw.linear, gw.routed_linear, gw.embedding  →  the same over weights in chosen schemes.

    Of the candidates of `auto` each weight gets the one that, with those of all others, loses least
    in a number of bits or bytes, or is the fastest to decode within a loss: the Kullback-Leibler
    divergence of the model's distributions, measured for each weight alone on some `tokens`, and
    for the whole on others. rounds: integers are rounded by the tokens, as `calibration` does it.
    Leaves: everything where the recipe says all schemes (auto is None); what QuantizeWeights
    leaves.
    """

    stage: ClassVar[Stage] = Stage.QUANTIZE

    auto: AutoRecipe | None = None
    budget: Budget = field(default_factory=Budget)
    tokens: Calibration | SelfWritten | None = None
    rounds: bool = False

    @property
    def exactness(self) -> Exactness:  # type: ignore[override]
        """By the fewest bits of the candidates."""
        coarse = self.auto is not None and self.auto.bits < 8
        return Exactness.COARSE if coarse else Exactness.APPROXIMATE

    def run(self, program: Program) -> int:
        if self.auto is None:
            return 0
        decisions = decisions_of(program, self.auto)
        Recipe(None, self.auto.fixed).check(each.name for each in decisions)
        if not decisions:
            self.miss("the program has no weight that may be stored in another scheme.")
            return 0
        if not self.allowed():
            return 0
        tell = current_context().on_progress
        given = self.tokens
        if isinstance(given, SelfWritten):
            tell(None, "write tokens to choose by")
            given = given.write(program)
        if given is None:
            raise PassError("schemes are chosen by tokens: give some, or let the model write them.")
        dealt = deal(given, rounds=self.rounds)
        dealt = replace(dealt, choice=affordable(program, decisions, dealt.choice))
        losses = _recorded(measure_losses(program, decisions, dealt.choice, tell))
        search = SchemeSearch(
            program, self.auto, self.budget, decisions, losses, dealt,
            lambda what: tell(None, what),
        )  # fmt: skip
        found = search.find()
        program.become(found.program)
        program.choice = self._choice(decisions, losses, search, found, dealt, given.origin)
        for note in (*_summary(program.choice), *found.notes):
            self.note(note)
        for reason in found.misses:
            self.miss(reason)
        return found.rewrites

    def _choice(
        self,
        decisions: Sequence[Decision],
        losses: Sequence[Mapping[AnyScheme | None, Loss]],
        search: SchemeSearch,
        found: Tried,
        dealt: DealtTokens,
        origin: str,
    ) -> SchemeChoice:
        assert self.auto is not None
        weights = tuple(map(_weight_choice, decisions, losses, found.schemes))
        taken = [each.options[_place(each)] for each in weights]
        size = sum(option.bytes for option in taken)
        return SchemeChoice(
            budget=str(self.budget),
            candidates=tuple(str(each or "f32") for each in self.auto.candidates),
            tokens=sum(map(len, dealt.choice)),
            held_out=found.measured.tokens,
            origin=origin,
            bits=round(8 * size / sum(each.elements for each in weights), 4),
            bytes=size,
            read=sum(option.read for option in taken),
            predicted=found.predicted,
            measured=rounded(found.measured.mean),
            error=rounded(found.measured.error),
            weights=weights,
            trials=tuple(search.trials),
            line=search.line(),
        )


def _recorded(
    losses: Sequence[Mapping[AnyScheme | None, Loss]],
) -> list[dict[AnyScheme | None, Loss]]:
    """The losses as they are recorded: the choice can be made again from the record."""
    return [
        {scheme: replace(loss, kl=rounded(loss.kl)) for scheme, loss in each.items()}
        for each in losses
    ]


def _weight_choice(
    decision: Decision, losses: Mapping[AnyScheme | None, Loss], scheme: AnyScheme | None
) -> WeightChoice:
    options = tuple(
        SchemeOption(
            str(each or "f32"), losses[each].kl, losses[each].how,
            stored_bytes(decision.weight.shape, each), read_bytes(decision, each),
        )
        for each in decision.schemes
    )  # fmt: skip
    return WeightChoice(
        decision.name, decision.roles, decision.elements, str(scheme or "f32"), decision.fixed,
        options,
    )  # fmt: skip


def _place(choice: WeightChoice) -> int:
    """Of what was chosen among the options."""
    return [option.scheme for option in choice.options].index(choice.scheme)


def _summary(choice: SchemeChoice) -> list[str]:
    """What was chosen, and what it loses, in two sentences."""
    counts = Counter(each.scheme for each in choice.weights)
    kinds = ", ".join(f"{count} {scheme}" for scheme, count in counts.most_common())
    origin = f" {choice.origin}" if choice.origin else ""
    return [
        f"{choice.bits:.2f} bits a weight, {choice.budget}: {kinds}",
        f"KL divergence {choice.measured:.3g} ± {choice.error:.1g} nats a token, measured on "
        f"{choice.held_out} other tokens{origin}; {choice.predicted:.3g} was predicted",
    ]
