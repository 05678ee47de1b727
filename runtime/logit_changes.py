"""What a request changes of the model's logits before a token is chosen: biases, penalties for
tokens that were generated, ends that would come too early, and what a grammar allows."""

from __future__ import annotations

from collections.abc import Collection
from copy import copy

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.errors import RequestError
from graphwright.runtime.grammar_matcher import GrammarMatcher
from graphwright.runtime.sampling_params import Sampling

__all__ = ["LogitChanges"]


class LogitChanges:
    """Of one request, as its answer grows. A token that was generated n times loses
    `n * frequency_penalty + presence_penalty` (the API's formula; those of the prompt do not
    count), every token gets its bias, and one that the grammar does not allow becomes -inf, as do
    `ends`, the ids that would end the answer, before it has min_tokens.

    Raises RequestError for a bias or a stop of a token that does not exist.
    """

    def __init__(
        self, sampling: Sampling, vocab_size: int, matcher: GrammarMatcher | None = None,
        ends: Collection[int] = (),
    ) -> None:  # fmt: skip
        self._frequency, self._presence = sampling.frequency_penalty, sampling.presence_penalty
        self._bias, self._matcher = dict(sampling.logit_bias), matcher
        self._counts: dict[int, int] = {}
        self._ends = [each for each in ends if 0 <= each < vocab_size]
        self._early = sampling.min_tokens if self._ends else 0  # tokens until they may come
        for name, ids in (("logit_bias", self._bias), ("stop_token_ids", sampling.stop_token_ids)):
            wrong = next((each for each in ids if not 0 <= each < vocab_size), None)
            if wrong is not None:
                raise RequestError(
                    f"{name} has the token id {wrong}; this model's ids are 0 to {vocab_size - 1}."
                )
        self._shift: NDArray[np.float32] | None = None
        if self._bias or self._penalizes:
            self._shift = np.zeros(vocab_size, np.float32)
            for token, bias in self._bias.items():
                self._shift[token] = bias

    @property
    def empty(self) -> bool:
        """Do logits stay as they are?"""
        return self._shift is None and self._matcher is None and not self._early

    @property
    def complete(self) -> bool:
        """Is the text one that the grammar has nothing to add to?"""
        return self._matcher is not None and self._matcher.complete

    @property
    def _penalizes(self) -> bool:
        return self._frequency != 0 or self._presence != 0

    def ahead(self) -> LogitChanges:
        """Those of the same answer, which may grow otherwise there."""
        found = copy(self)
        found._counts = dict(self._counts)
        found._shift = None if self._shift is None else self._shift.copy()
        found._matcher = None if self._matcher is None else self._matcher.ahead()
        return found

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Changed logits float32 [V]; the given ones stay. Raises RequestError when the grammar
        allows no token, or only tokens that the model excludes.
        """
        if self._shift is not None:
            logits = logits + self._shift
        if self._early:
            logits = logits.copy()
            logits[self._ends] = -np.inf
        if self._matcher is None:
            return logits
        result = np.where(self._matcher.allowed(), logits, np.float32(-np.inf))
        if result.max() == -np.inf:
            raise RequestError(
                "the model excludes every token that the grammar allows here: their logits are "
                "-inf."
            )
        return result

    def accept(self, token: int) -> None:
        """Counts a token that was generated; once for each, in their order. Raises RequestError."""
        if self._shift is not None and self._penalizes:
            count = self._counts[token] = self._counts.get(token, 0) + 1
            penalty = count * self._frequency + self._presence
            self._shift[token] = self._bias.get(token, 0.0) - penalty
        self._early = max(0, self._early - 1)
        if self._matcher is not None:
            self._matcher.accept(token)
