"""Tokens for the choice of schemes: some to choose by, and others to see what it comes to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graphwright.ir.errors import PassError
from graphwright.passes.calibration import Calibration

__all__ = ["CHOICE_TOKENS", "HELD_OUT_TOKENS", "DealtTokens", "deal"]

CHOICE_TOKENS = 2048
HELD_OUT_TOKENS = 4096
_CHOICE_LENGTH = 256  # of a sequence to choose by, where there are enough: many say more than few


@dataclass(frozen=True, eq=False)
class DealtTokens:
    """choice: sequences to measure single weights on. held_out: those that nothing is chosen or
    rounded by. rounding: what integers are rounded by (None: to nearest)."""

    choice: tuple[torch.Tensor, ...]
    held_out: tuple[torch.Tensor, ...]
    rounding: Calibration | None


def deal(given: Calibration, *, rounds: bool) -> DealtTokens:
    """Every so many sequences are held out: a quarter of those that others are rounded by, two
    thirds where nothing is, HELD_OUT_TOKENS at most. Raises PassError for less than four tokens.
    """
    sequences = _two_at_least(given)
    total = sum(map(len, sequences))
    wanted = min(HELD_OUT_TOKENS, total // 4 if rounds else 2 * total // 3)
    count = min(len(sequences) - 1, max(1, round(wanted * len(sequences) / total)))
    places = {(2 * i + 1) * len(sequences) // (2 * count) for i in range(count)}
    held_out = tuple(sequences[place] for place in sorted(places))
    if sum(map(len, held_out)) < 2:
        raise PassError("one token to test schemes by is too few: give longer sequences.")
    rest = tuple(each for place, each in enumerate(sequences) if place not in places)
    return DealtTokens(_choice(rest), held_out, Calibration(rest, given.origin) if rounds else None)


def _two_at_least(given: Calibration) -> list[torch.Tensor]:
    sequences = list(given.sequences)
    if len(sequences) == 1:
        half = len(sequences[0]) // 2
        sequences = [sequences[0][:half], sequences[0][half:]]
    if min(map(len, sequences), default=0) < 1 or given.tokens < 4:
        raise PassError(
            f"schemes are chosen by some tokens and tested by others, and there are {given.tokens} "
            f"in all: give {CHOICE_TOKENS + HELD_OUT_TOKENS} or more."
        )
    return sequences


def _choice(sequences: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Beginnings of sequences, evenly spread over all, that come to CHOICE_TOKENS at most."""
    length = max(_CHOICE_LENGTH, CHOICE_TOKENS // len(sequences))
    count = min(len(sequences), max(1, CHOICE_TOKENS // length))
    return tuple(sequences[i * len(sequences) // count][:length] for i in range(count))
