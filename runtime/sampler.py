"""From one row of logits to one token, in the order of transformers' logits processors:
repetition penalty, temperature, top-k, top-p, min-p, draw."""

from __future__ import annotations

from copy import copy
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.draws import Draw, draw_rule, random_word
from graphwright.runtime.errors import RequestError
from graphwright.runtime.logit_changes import LogitChanges
from graphwright.runtime.race import race, race_number
from graphwright.runtime.sampling_params import Sampling

__all__ = ["Sampler"]

_FIRST_CANDIDATES = 1024
_NAN = "the model's logits are not numbers (NaN) here; its weights may be damaged."
_INFINITE = (
    "the largest of the model's logits is infinite here, from which no token can be drawn; the "
    "model's weights may be damaged, or its numbers too large for their type."
)


class Sampler:
    """Chooses the tokens of one sequence. Its random numbers depend on the seed alone.

    `seen`: token ids of the prompt; chosen tokens are added for the repetition penalty
    (Keskar et al., arXiv 1909.05858). changes: what else changes logits, behind that penalty; it
    is told of each token that was chosen. races: draw by runtime/race.py, so that what another
    model draws by the same numbers is a good guess; else by sums, as steps on a GPU do.
    takes_largest: is the token always that of the largest logit, as the model says it?
    """

    def __init__(
        self,
        sampling: Sampling,
        vocab_size: int,
        seen: list[int],
        changes: LogitChanges | None = None,
        races: bool = False,
    ) -> None:
        self._sampling, self._races = sampling, races
        self._random = Random(sampling.seed)  # one number a token; numpy.random is slow to import
        self._race_key, self._races_run = self._random.getrandbits(64) if races else 0, 0
        self._changes = changes
        self._seen: NDArray[np.bool_] | None = None
        if sampling.repetition_penalty != 1:
            self._seen = np.zeros(vocab_size, np.bool_)
            self._seen[seen] = True
        self._never_draws = sampling.temperature == 0 or sampling.top_k == 1
        self._is_changed = self._seen is not None or changes is not None
        self.takes_largest = self._never_draws and not self._is_changed
        self._rule = None if self._never_draws else draw_rule(sampling, vocab_size)

    def draw(self) -> Draw | None:
        """How a step is to draw the next token: as `choose` would, with the same random number,
        which is taken with this. None where the host changes logits before, or lets tokens race.
        """
        if self._rule is None or self._is_changed or self._races:
            return None
        return (random_word(self._random.random()), *self._rule)

    def ahead(self) -> Sampler:
        """Another one that would choose the next tokens as this one will, and leaves it alone."""
        found = copy(self)
        found._random = self._random if self._races else copy(self._random)
        found._seen = None if self._seen is None else self._seen.copy()
        found._changes = None if self._changes is None else self._changes.ahead()
        return found

    def choose(self, logits: NDArray[np.float32], chosen: int | None = None) -> int:
        """A token id for logits float32 [V]; of equal ones the lowest id comes first.

        chosen: what a step has chosen for it, as StepLibrary says; the logits are not read then.
        Raises RequestError when the logits hold NaN, or the largest is infinite and a token is to
        be drawn.
        """
        if chosen is not None:
            if chosen < 0:
                raise RequestError(_NAN if chosen == -1 else _INFINITE)
            return chosen
        if self._seen is not None:
            logits = self._penalized(logits, self._seen)
        if self._changes is not None:
            logits = self._changes.apply(logits)
        if self._never_draws:
            token = int(logits.argmax())
            self._check(logits[token])
        else:
            ids, weights = self._candidates(logits)
            if self._races:
                token = race(race_number(self._race_key, self._races_run), ids, weights)
                self._races_run += 1
            else:
                token = self._draw(ids, weights)
        if self._seen is not None:
            self._seen[token] = True
        if self._changes is not None:
            self._changes.accept(token)
        return token

    def _penalized(
        self, logits: NDArray[np.float32], seen: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        ids = np.flatnonzero(seen)
        values = logits[ids]
        penalty = np.float32(self._sampling.repetition_penalty)
        result = logits.copy()
        result[ids] = np.where(values > 0, values / penalty, values * penalty)
        return result

    def _draw(self, ids: NDArray[Any], weights: NDArray[np.float64]) -> int:
        total = np.cumsum(weights)
        index = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return int(ids[min(index, len(ids) - 1)])

    def _candidates(self, logits: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Token ids that may be drawn, most likely first, and their unnormalised probabilities."""
        top = logits.max()
        self._check(top)
        if 0 < self._sampling.top_k < len(logits):
            ids = _largest(logits, self._sampling.top_k)
            return self._kept(ids, self._weights(logits[ids], top))
        weights = self._weights(logits, top)
        if self._sampling.top_p == 1 and self._sampling.min_p == 0:
            return np.arange(len(weights)), weights  # none is cut off: any order will do
        total = float(weights.sum())
        ids = self._sorted_until(logits, weights, total)
        return self._kept(ids, weights[ids], total)

    def _weights(self, logits: NDArray[np.float32], top: np.float32) -> NDArray[np.float64]:
        """Unnormalised probabilities, those of the logit `top` being 1. Raises RequestError."""
        if np.isinf(top):
            raise RequestError(_INFINITE)
        scaled = (logits.astype(np.float64) - float(top)) / self._sampling.temperature
        return np.asarray(np.exp(scaled))

    def _kept(
        self, ids: NDArray[Any], weights: NDArray[np.float64], total: float | None = None
    ) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """What top-p and min-p leave of tokens in falling order; total: default their sum."""
        options = self._sampling
        if options.top_p < 1:
            # The smallest set whose mass reaches top_p: the one that crosses it stays.
            before = np.cumsum(weights) - weights
            total = float(weights.sum()) if total is None else total
            keep = max(1, int(np.count_nonzero(before < options.top_p * total)))
            ids, weights = ids[:keep], weights[:keep]
        if options.min_p > 0:
            keep = max(1, int(np.count_nonzero(weights >= options.min_p * weights[0])))
            ids, weights = ids[:keep], weights[:keep]
        return ids, weights

    def _sorted_until(
        self, logits: NDArray[np.float32], weights: NDArray[np.float64], total: float
    ) -> NDArray[np.intp]:
        """Ids in falling order: only the first ones when top-p or min-p ends among them anyway."""
        options, size = self._sampling, len(logits)
        ids = _largest(logits, min(size, _FIRST_CANDIDATES))
        first = weights[ids]
        enough = first.sum() >= options.top_p * total if options.top_p < 1 else False
        enough = enough or first[-1] < options.min_p * first[0]
        return ids if enough or len(ids) == size else _largest(logits, size)

    def _check(self, top: np.float32) -> None:
        if np.isnan(top):
            raise RequestError(_NAN)


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest values in falling order, lower index first among equals."""
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        ids = np.flatnonzero(values >= least)
    else:
        ids = np.arange(len(values))
    return ids[np.argsort(-values[ids], kind="stable")[:count]]
