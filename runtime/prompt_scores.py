"""How likely the model held each token of a prompt to be, from the rows of the prompt's chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.log_probabilities import TokenLogprobs, token_logprobs
from graphwright.runtime.stopping import Decoder, Detokenizer

__all__ = ["PromptScores"]


class PromptScores:
    """Of the tokens of `prompt`, with the `most` most likely ones at each place.

    found: as far as the rows have come. The first token, which nothing stands before, has no
    probability: its logprob is NaN, and it has no others beside it. text_offset counts characters
    of the prompt's text.
    """

    def __init__(self, prompt: Sequence[int], most: int, decoder: Decoder | None) -> None:
        self._prompt, self._most = tuple(prompt), most
        self._detokenizer = None if decoder is None else Detokenizer(decoder, ())
        self._characters = 0
        self.found = [TokenLogprobs(self._prompt[0], float("nan"), ())]
        self._pass(self._prompt[0])

    def add(self, start: int, rows: NDArray[np.float32]) -> None:
        """Takes logits float32 [n, V] of the positions from `start` on, none left out, each in
        front of a token of the prompt. Raises RequestError where logits give no probability.
        """
        assert start + 1 == len(self.found), "rows come in the order of their positions"
        for token, logits in zip(self._prompt[start + 1 :], rows, strict=False):
            self.found.append(token_logprobs(logits, token, self._most, self._characters))
            self._pass(token)

    def _pass(self, token: int) -> None:
        if self._detokenizer is not None:
            self._characters += len(self._detokenizer.push(token))
