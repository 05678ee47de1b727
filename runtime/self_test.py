"""The artifact's self-test: does the compiled code say on this machine what the reference said?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError

__all__ = ["SelfTest", "self_test"]

_RELATIVE = 0.02  # of the largest golden logit: far above rounding, far below a wrong kernel


@dataclass(frozen=True)
class SelfTest:
    """positions: how many were compared; worst: the largest error of a logit, in units of the
    tolerance; wrong: the positions where another token is clearly the most likely one."""

    positions: int
    worst: float
    wrong: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Did every position agree?"""
        return not self.wrong and self.worst <= 1


def self_test(engine: Engine) -> SelfTest:
    """Replays golden.json through both entries. Raises ArtifactError when the artifact has none.

    golden.json holds a prompt of token ids and, after each of its positions, the most likely next
    id `greedy`, that one's logit `top` and its lead `gap` over the second; and so for each adapter.
    """
    golden: dict[str, Any] = engine.artifact.json("golden.json")
    try:
        prompt = [int(each) for each in golden["prompt"]]
        expected = {None: _Golden.read(golden)} | {
            name: _Golden.read(golden["adapters"][name]) for name in engine.plan.adapters
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"the artifact's golden.json is incomplete: {error!r}.") from error
    tests = [_compare(engine, prompt, each, name) for name, each in expected.items()]
    return SelfTest(
        sum(each.positions for each in tests),
        max(each.worst for each in tests),
        tuple(sorted({position for each in tests for position in each.wrong})),
    )


@dataclass(frozen=True)
class _Golden:
    """What the reference said after each position of the prompt."""

    greedy: NDArray[np.int64]
    top: NDArray[np.float64]
    gap: NDArray[np.float64]

    @staticmethod
    def read(found: dict[str, Any]) -> _Golden:
        """Raises KeyError, TypeError or ValueError for what is incomplete."""
        top, gap = (np.array(found[name], np.float64) for name in ("top", "gap"))
        return _Golden(np.array(found["greedy"], np.int64), top, gap)


def _compare(engine: Engine, prompt: list[int], golden: _Golden, adapter: str | None) -> SelfTest:
    greedy, top, gap = golden.greedy, golden.top, golden.gap
    tolerance = _RELATIVE * max(1.0, float(np.abs(top).max()))
    wrong: set[int] = set()
    worst = 0.0
    # A prompt that fits into one decode step runs through that entry, a longer one through prefill.
    short = min(len(prompt), engine.plan.entries["decode"].max_tokens)
    for length in {short, len(prompt)}:
        logits = engine.logits(prompt[:length], adapter=adapter)
        chosen = logits.argmax(axis=1)
        clear = gap[:length] > 2 * tolerance
        wrong |= set(np.flatnonzero((chosen != greedy[:length]) & clear).tolist())
        off = np.abs(logits[np.arange(length), greedy[:length]] - top[:length]).max()
        worst = max(worst, float(off) / tolerance)
    return SelfTest(len(prompt), worst, tuple(sorted(wrong)))
