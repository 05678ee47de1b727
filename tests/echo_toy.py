"""The toy model of a text that repeats itself, mostly: guesses are right often, but not always."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from toy_model import ToyLibrary, toy_logits

__all__ = ["PERIOD", "EchoToy", "echo_greedy", "echo_logits"]

PERIOD = 5


def echo_logits(history: Sequence[int]) -> NDArray[np.float32]:
    """The toy's logits, by which in most cases the token comes again that came PERIOD before."""
    logits = toy_logits(history)
    if len(history) >= PERIOD and sum(history) % 6:
        logits[history[-PERIOD]] += 12
    return logits


def echo_greedy(prompt: Sequence[int], count: int) -> list[int]:
    """The `count` tokens that greedy decoding says after `prompt`."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(echo_logits(tokens).argmax()))
    return tokens[len(prompt) :]


class EchoToy(ToyLibrary):
    """A StepLibrary with these logits."""

    def logits_after(self, history: Sequence[int]) -> NDArray[np.float32]:
        return echo_logits(history)
