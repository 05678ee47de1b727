"""What the model's distributions lose when one weight alone is stored in a scheme.

Some sequences go through the program as it is. Where a weight is read, they fork: a lane for each
scheme takes the weight in that scheme, and goes on beside the others as floats, so that what is in
front of a weight is computed once for all, and each weight is loaded once. At the logits each lane
is compared with the first one: the Kullback-Leibler divergence of what the model said to what it
says then.

Where that is too much work, of each weight one scheme is measured, and the loss of the others is
taken to be as much larger or smaller as the squared error of the product's result is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from graphwright.ir.errors import PassError
from graphwright.ir.float_scheme import AnyScheme, FloatScheme
from graphwright.ir.interpreter import steps_of
from graphwright.ir.program import Program
from graphwright.passes.calibration import threads_for
from graphwright.passes.divergence import divergence, finish, head_place, tokens_at_once
from graphwright.passes.lane_costs import bytes_per_token, work_behind
from graphwright.passes.quantized_calls import Call, call_with_parts
from graphwright.passes.scheme_options import Decision, parts_of
from graphwright.passes.sequence_lane import Batch, SequenceLane

__all__ = ["EXACT", "ESTIMATED", "MEASURED", "Loss", "affordable", "measure_losses"]

EXACT, MEASURED, ESTIMATED = "exact", "measured", "estimated"
"""How a loss is known: nothing changes; by a lane of its own; from another scheme's."""

MOST_WORK = 4e12  # multiplications for which each scheme of each weight has a lane
LEAST_TOKENS = 512  # that a mean is taken over where even one scheme of each weight is more
_LANE_BYTES = 1 << 30  # that lanes may hold at once


@dataclass(frozen=True)
class Loss:
    """Nats a token, and how that is known."""

    kl: float
    how: str


@dataclass
class _Fork:
    """The lane of a decision in one scheme. error: squared, of the first result that it changes."""

    decision: Decision
    scheme: AnyScheme
    lane: _ForkedLane
    error: float = 0.0


class _ForkedLane(SequenceLane):
    """A lane in which some steps, by their places, are `calls` of something else."""

    calls: dict[int, Call]

    @staticmethod
    def of(lane: SequenceLane, calls: dict[int, Call]) -> _ForkedLane:
        """A copy of `lane` where it is; weights are loaded for both."""
        fork = _ForkedLane.__new__(_ForkedLane)
        vars(fork).update(vars(lane))
        names = {name for state in lane.program.states for name in state.inputs}
        fork.batches = [batch.copy(names) for batch in lane.batches]
        fork.calls = calls
        return fork

    def advance(self, place: int, *, drop: bool = True) -> None:
        super().advance(place, drop=drop)
        self.calls = {at: call for at, call in self.calls.items() if at >= place}

    def result(self, batch: Batch, place: int) -> object:
        if place not in self.calls:
            return super().result(batch, place)
        target, args, kwargs = self.calls[place]
        args, kwargs = self.value(batch, (args, kwargs))
        return target(*args, **kwargs)


def affordable(
    program: Program,
    decisions: Sequence[Decision],
    sequences: Sequence[torch.Tensor],
    most_work: float = MOST_WORK,
) -> tuple[torch.Tensor, ...]:
    """Those of the sequences that losses are measured on: all, or the first LEAST_TOKENS and as
    many as make `most_work` where one scheme of each weight is measured."""
    kept = list(sequences)
    while len(kept) > 1 and sum(map(len, kept[:-1])) >= LEAST_TOKENS:
        work = _Measuring(program, decisions, kept, lambda share, what: None, most_work)
        if work.total <= most_work:
            break
        kept.pop()
    return tuple(kept)


def measure_losses(
    program: Program,
    decisions: Sequence[Decision],
    sequences: Sequence[torch.Tensor],
    on_progress: Callable[[float, str], None] = lambda share, what: None,
    *,
    most_work: float = MOST_WORK,
) -> list[dict[AnyScheme | None, Loss]]:
    """Of each decision the loss of each of its schemes, over all positions of the sequences.

    sequences: token ids, int64 [n] each. Raises PassError where a logit is not finite.
    """
    largest = max((math.prod(each.weight.shape[-2:]) for each in decisions), default=0)
    with torch.no_grad(), threads_for(largest):
        return _Measuring(program, decisions, sequences, on_progress, most_work).losses()


class _Measuring:
    def __init__(
        self,
        program: Program,
        decisions: Sequence[Decision],
        sequences: Sequence[torch.Tensor],
        on_progress: Callable[[float, str], None],
        most_work: float,
    ) -> None:
        self._program, self._decisions, self._sequences = program, decisions, sequences
        self._on_progress = on_progress
        self._steps = steps_of(program)
        self._places = {step.node: place for place, step in enumerate(self._steps)}
        self._head = head_place(program, self._steps)
        self._tokens = sum(map(len, sequences))
        self._found: list[dict[AnyScheme | None, Loss]] = [{} for _ in decisions]
        self._behind = work_behind(self._steps)
        self._all = self._work(all_schemes=True) <= most_work
        self.total, self._done = self._work(all_schemes=self._all), 0.0

    def losses(self) -> list[dict[AnyScheme | None, Loss]]:
        self._on_progress(0, self._announcement())
        for decisions in self._waves():
            self._wave(decisions)
        for decision, found in zip(self._decisions, self._found, strict=True):
            assert set(found) == set(decision.schemes), decision.name
        return self._found

    def _first(self, decision: Decision) -> int:
        """The place of its first reader."""
        return min(self._places[node] for node, _ in decision.readers)

    def _is_measured(self, decision: Decision) -> bool:
        """Does each scheme have a lane? Also where errors cannot tell: for several readers, and at
        the logits, where lanes are short."""
        return self._all or len(decision.readers) > 1 or self._first(decision) >= self._head

    def _work(self, *, all_schemes: bool) -> float:
        """Multiplications that all lanes take, with and without each scheme of each weight."""
        lanes = [
            (len(each.schemes) if all_schemes else 1) * self._behind[self._first(each)]
            for each in self._decisions
        ]
        return float(self._tokens * (self._behind[0] + sum(lanes)))

    def _waves(self) -> Iterator[set[int]]:
        """Decisions, by number, whose lanes fit into memory together."""
        most = self._most_lanes()
        wave: set[int] = set()
        lanes = 0
        for number, decision in enumerate(self._decisions):
            count = len(decision.schemes) if self._is_measured(decision) else 1
            if wave and lanes + count > most:
                yield wave
                wave, lanes = set(), 0
            wave.add(number)
            lanes += count
        if wave:
            yield wave

    def _most_lanes(self) -> int:
        lane_bytes = max(1, bytes_per_token(self._steps) * self._tokens)
        return max(8, _LANE_BYTES // lane_bytes)

    def _wave(self, wave: set[int]) -> None:
        """One time through the program, with the forks of the decisions of these numbers."""
        at: dict[int, list[int]] = {}
        for number in sorted(wave):
            at.setdefault(self._first(self._decisions[number]), []).append(number)
        base = self._base()
        forks: list[tuple[int, _Fork]] = []
        for place in range(self._head):
            new = [(n, fork) for n in at.get(place, ()) for fork in self._forks(base, n)]
            base.advance(place + 1, drop=False)
            for _, fork in (*forks, *new):
                fork.lane.advance(place + 1, drop=False)
            base.constants.drop(self._steps[place].dying)
            forks += self._kept(base, place, new)
            self._tell(place, 1 + len(forks))
        for place in range(self._head, len(self._steps)):
            forks += [(n, fork) for n in at.get(place, ()) for fork in self._forks(base, n)]
        self._compare(base, forks)

    def _base(self) -> SequenceLane:
        """A lane at the beginning."""
        most = tokens_at_once(self._program)
        return SequenceLane(self._program, self._steps, self._sequences, tokens_at_once=most)

    def _forks(self, base: SequenceLane, number: int) -> list[_Fork]:
        """The lanes of a decision at its first reader; schemes that change nothing are settled."""
        decision = self._decisions[number]
        weight = decision.weight.load()
        forks = []
        for scheme in decision.schemes:
            if scheme is None:
                self._found[number][None] = Loss(0.0, EXACT)
                continue
            try:
                parts = parts_of(decision.weight, weight, scheme)
            except PassError as error:
                raise PassError(
                    f"'{decision.name}' as {scheme}: {error} Leave it out of the candidates."
                ) from error
            if isinstance(scheme, FloatScheme) and torch.equal(parts[0].to(weight.dtype), weight):
                self._found[number][scheme] = Loss(0.0, EXACT)
                continue
            calls = {}
            for node, role in decision.readers:
                step = self._steps[self._places[node]]
                call = (step.target, step.args, step.kwargs)
                calls[self._places[node]] = call_with_parts(call, role, parts, scheme)
            forks.append(_Fork(decision, scheme, _ForkedLane.of(base, calls)))
        return forks

    def _kept(
        self, base: SequenceLane, place: int, forks: list[tuple[int, _Fork]]
    ) -> list[tuple[int, _Fork]]:
        """Those of the new `forks`, one step old, that go on; the loss of the others is left to be
        estimated from theirs."""
        node = self._steps[place].node
        for _, fork in forks:
            pairs = zip(fork.lane.values(node), base.values(node), strict=True)
            fork.error = sum(float((got - want).double().square().sum()) for got, want in pairs)
        kept = []
        for number in dict.fromkeys(number for number, _ in forks):
            own = [fork for n, fork in forks if n == number]
            if self._is_measured(self._decisions[number]):
                kept += [(number, fork) for fork in own]
                continue
            probe = max(own, key=lambda fork: fork.error)
            kept.append((number, probe))
            for fork in own:
                if fork is not probe:
                    share = fork.error / probe.error if probe.error else 0.0
                    self._found[number][fork.scheme] = Loss(share, ESTIMATED)
        return kept

    def _compare(self, base: SequenceLane, forks: list[tuple[int, _Fork]]) -> None:
        """Each lane's logits with those of the base, batch by batch."""
        vocabulary = self._program.info.vocab_size
        totals = [0.0] * len(forks)
        for index in range(len(base.batches)):
            want = finish(base, index)[:, :vocabulary].double().log_softmax(-1)
            for number, (_, fork) in enumerate(forks):
                got = finish(fork.lane, index)[:, :vocabulary]
                totals[number] += float(divergence(want, got).sum())
        for (number, fork), total in zip(forks, totals, strict=True):
            kl = total / self._tokens
            if not math.isfinite(kl):
                raise PassError(
                    f"the logits are not finite, or not so when '{fork.decision.name}' is stored "
                    f"as {fork.scheme}: leave the scheme out of the candidates."
                )
            found = self._found[number]
            for scheme, loss in found.items():
                if loss.how == ESTIMATED:
                    found[scheme] = Loss(loss.kl * kl, ESTIMATED)
            found[fork.scheme] = Loss(kl, MEASURED)

    def _tell(self, place: int, lanes: int) -> None:
        step = self._behind[place] - self._behind[place + 1]
        self._done += float(step * lanes * self._tokens)
        share = min(1.0, max(1e-6, self._done / max(1.0, self.total)))
        self._on_progress(share, f"losses of {len(self._decisions)} weights")

    def _announcement(self) -> str:
        """What is about to be done, with what it takes: by the time of one lane, which is gone."""
        lanes = sum(len(each.schemes) if self._is_measured(each) else 1 for each in self._decisions)
        most = min(lanes, self._most_lanes()) * bytes_per_token(self._steps) * self._tokens
        most += max(each.elements * (8 + len(each.schemes)) for each in self._decisions)
        start = time.perf_counter()
        self._base().advance(self._head)
        once = time.perf_counter() - start
        seconds = once * self.total / max(1, self._tokens * self._behind[0])
        rest = "" if self._all else ", the losses of other schemes estimated from theirs"
        return (
            f"losses of {len(self._decisions)} weights: {lanes} lanes of {self._tokens} tokens"
            f"{rest}; up to {most / 1e9:.2f} GB, about {seconds:.0f} s"
        )
