"""How far the distributions of two programs over the next token are apart, on some sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphwright.ir.errors import PassError
from graphwright.ir.interpreter import Step, steps_of, the_logits
from graphwright.ir.program import Program
from graphwright.passes.calibration import threads_for
from graphwright.passes.head import logits_linears
from graphwright.passes.sequence_lane import Batch, SequenceLane

__all__ = ["Divergence", "Reference", "divergence", "finish", "head_place", "tokens_at_once"]

_LOGITS_AT_ONCE = 1 << 26  # of a batch


@dataclass(frozen=True)
class Divergence:
    """The mean Kullback-Leibler divergence in nats a token, its standard error over tokens."""

    mean: float
    error: float
    tokens: int

    @property
    def upper(self) -> float:
        """Two standard errors above the mean."""
        return self.mean + 2 * self.error

    def __str__(self) -> str:
        return f"{self.mean:.3g} ± {self.error:.1g} nats a token"


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Σ p (ln p - ln q) for each row; reference: ln p, float64 [n, V]; logits: of q [n, V]."""
    log_q = logits.double().log_softmax(-1)
    # It cannot be negative: what is below zero is rounding.
    found: torch.Tensor = torch.linalg.vecdot(reference.exp(), reference - log_q)
    return found.clamp_(min=0)


def tokens_at_once(program: Program) -> int:
    """Of a batch whose logits are in memory together."""
    return max(1, min(2048, _LOGITS_AT_ONCE // program.info.vocab_size))


def head_place(program: Program, steps: Sequence[Step]) -> int:
    """Where the logits begin: at the first product that makes them, or at the end."""
    heads = logits_linears(program)
    places = [place for place, step in enumerate(steps) if step.node in heads]
    return min(places, default=len(steps) - 1)


def finish(lane: SequenceLane, index: int) -> torch.Tensor:
    """The logits [n, V] of the lane's batch of that number; the lane stays where it is."""
    kept = lane.batches[index]
    batch = Batch(dict(kept.values), dict(kept.states))
    for place in range(lane.place, len(lane.steps)):
        lane.run(batch, place)
    result: Any = lane.value(batch, lane.steps[-1].args[0])
    return the_logits(result)


class Reference:
    """What `program` says to some sequences, for others to be compared with: it is computed once,
    and kept in front of the logits."""

    def __init__(self, program: Program, sequences: Sequence[torch.Tensor]) -> None:
        self._sequences = sequences
        self._largest = max(math.prod(each.shape[-2:]) for _, each in program.weights.items())
        with torch.no_grad(), threads_for(self._largest):
            self._lane = self._in_front(program)

    def compare(self, program: Program) -> Divergence:
        """Raises PassError where a logit of either is not finite."""
        rows = []
        vocabulary = program.info.vocab_size
        with torch.no_grad(), threads_for(self._largest):
            lane = self._in_front(program)
            for index in range(len(lane.batches)):
                want = finish(self._lane, index)[:, :vocabulary].double().log_softmax(-1)
                rows.append(divergence(want, finish(lane, index)[:, :vocabulary]))
        found = torch.cat(rows)
        if not bool(found.isfinite().all()):
            raise PassError("a logit is not finite: a divergence is defined for finite ones only.")
        error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else math.inf
        return Divergence(float(found.mean()), error, len(found))

    def _in_front(self, program: Program) -> SequenceLane:
        """All sequences in front of the logits of `program`."""
        steps = steps_of(program)
        lane = SequenceLane(program, steps, self._sequences, tokens_at_once=tokens_at_once(program))
        lane.advance(head_place(program, steps))
        return lane
