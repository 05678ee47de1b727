"""What a decoding step costs, roughly: from counts that the plan gives, never from a clock, so that
runs can be repeated. docs/decisions/0017 says what the shares were measured by."""

from __future__ import annotations

from dataclasses import dataclass

from graphwright.runtime.plan import Plan

__all__ = ["StepCost"]

# What another token costs of reading the weights, which it shares, and of reading the keys and
# values of its sequence. What stays in caches is read faster, so that there is less to share.
_IN_MEMORY = 1 / 8, 1 / 2
_IN_CACHES = 3 / 8, 3 / 4
_CACHES = 16_000_000  # bytes of weights that a token reads there


@dataclass(frozen=True)
class StepCost:
    """Costs in bytes that a step of one token reads: `weights`, and `position` for each position in
    front of a token. share, again: what another token costs of the weights, and of the positions.

    Experts are read for the tokens that chose them, so that tokens share less of them. Layers with
    windows count as if they had none.
    """

    weights: float
    position: float
    share: float
    again: float

    @classmethod
    def of(cls, plan: Plan) -> StepCost:
        """That of an artifact."""
        read = plan.weight_bytes_per_token
        chosen = 1 - read / plan.weights_bytes if plan.weights_bytes else 0.0
        share, again = _IN_CACHES if read < _CACHES else _IN_MEMORY
        return cls(read, plan.block_bytes / plan.block_size, max(share, chosen), again)

    def step(self, tokens: int, positions: int) -> float:
        """Of a step of so many tokens, `positions` in front of its sequences in all."""
        return self.weights * (1 + self.share * (tokens - 1)) + self.position * positions

    def token(self, positions: float) -> float:
        """Of another token of a sequence with so many positions."""
        return self.weights * self.share + self.position * positions * self.again
