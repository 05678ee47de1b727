"""What a decoding step costs, roughly: from counts that the plan gives, never from a clock, so that
runs can be repeated. docs/decisions/0016 says what the shares were measured by."""

from __future__ import annotations

from dataclasses import dataclass

from graphwright.runtime.plan import Plan

__all__ = ["StepCost"]

_OF_WEIGHTS = 1 / 8  # what another token costs of reading the weights, which it shares
_IN_CACHES = 3 / 8  # the same of weights that stay in caches: there is less to share
_CACHES = 16_000_000  # bytes of such weights
_OF_POSITIONS = 1 / 2  # what another token of a sequence costs of reading its keys and values


@dataclass(frozen=True)
class StepCost:
    """Costs in bytes that a step of one token reads: `weights`, and `position` for each position in
    front of a token. share: what another token costs of the weights.

    Experts are read for the tokens that chose them, so that tokens share less of them. Layers with
    windows count as if they had none.
    """

    weights: float
    position: float
    share: float

    @classmethod
    def of(cls, plan: Plan) -> StepCost:
        """That of an artifact."""
        read = plan.weight_bytes_per_token
        chosen = 1 - read / plan.weights_bytes if plan.weights_bytes else 0.0
        share = max(_IN_CACHES if read < _CACHES else _OF_WEIGHTS, chosen)
        return cls(read, plan.block_bytes / plan.block_size, share)

    def step(self, tokens: int, positions: int) -> float:
        """Of a step of so many tokens, `positions` in front of its sequences in all."""
        return self.weights * (1 + self.share * (tokens - 1)) + self.position * positions

    def token(self, positions: float) -> float:
        """Of another token of a sequence with so many positions."""
        return self.weights * self.share + self.position * positions * _OF_POSITIONS
