"""From one row of logits to one token, in the order of transformers' logits processors:
repetition penalty, temperature, top-k, top-p, min-p, draw."""

from __future__ import annotations

from random import Random

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.errors import RequestError
from graphwright.runtime.sampling_params import Sampling

__all__ = ["Sampler"]

_FIRST_CANDIDATES = 1024


class Sampler:
    """Chooses the tokens of one sequence. Its random numbers depend on the seed alone.

    `seen`: token ids of the prompt; chosen tokens are added for the repetition penalty
    (Keskar et al., arXiv 1909.05858).
    """

    def __init__(self, sampling: Sampling, vocab_size: int, seen: list[int]) -> None:
        self._sampling = sampling
        self._random = Random(sampling.seed)  # one number a token; numpy.random is slow to import
        self._seen: NDArray[np.bool_] | None = None
        if sampling.repetition_penalty != 1:
            self._seen = np.zeros(vocab_size, np.bool_)
            self._seen[seen] = True

        self.takes_largest = sampling.temperature == 0 and self._seen is None

    def choose(self, logits: NDArray[np.float32], largest: int | None = None) -> int:
        """A token id for logits float32 [V]; of equal ones the lowest id comes first.

        largest: the id of the largest, -1 if one is NaN, where it is known. Raises RequestError
        when the logits hold NaN.
        """
        if largest is not None and self.takes_largest:
            if largest < 0:
                self._check(np.float32(np.nan))
            return largest
        if self._seen is not None:
            logits = self._penalized(logits, self._seen)
        if self._sampling.temperature == 0:
            token = int(logits.argmax())
            self._check(logits[token])
        else:
            token = self._draw(logits)
        if self._seen is not None:
            self._seen[token] = True
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

    def _draw(self, logits: NDArray[np.float32]) -> int:
        ids, weights = self._candidates(logits)
        total = np.cumsum(weights)
        index = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return int(ids[min(index, len(ids) - 1)])

    def _candidates(
        self, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Token ids that may be drawn, most likely first, and their unnormalised probabilities."""
        options = self._sampling
        top = logits.max()
        self._check(top)
        scaled = (logits.astype(np.float64) - float(top)) / options.temperature
        count = len(scaled)
        if options.top_k:
            count = min(count, options.top_k)
        ids = _largest(scaled, count) if count < len(scaled) else None
        total = np.exp(scaled if ids is None else scaled[ids]).sum()
        if ids is None:
            ids = self._sorted_until(scaled, total)
        weights = np.exp(scaled[ids])
        if options.top_p < 1:
            # The smallest set whose mass reaches top_p: the one that crosses it stays.
            before = np.cumsum(weights) - weights
            keep = max(1, int(np.count_nonzero(before < options.top_p * total)))
            ids, weights = ids[:keep], weights[:keep]
        if options.min_p > 0:
            keep = max(1, int(np.count_nonzero(weights >= options.min_p * weights[0])))
            ids, weights = ids[:keep], weights[:keep]
        return ids, weights

    def _sorted_until(self, scaled: NDArray[np.float64], total: float) -> NDArray[np.intp]:
        """Ids in falling order: only the first ones when top-p or min-p ends among them anyway."""
        options, size = self._sampling, len(scaled)
        if options.top_p == 1 and options.min_p == 0:
            return np.arange(size)  # nothing is cut off: the order does not matter
        ids = _largest(scaled, min(size, _FIRST_CANDIDATES))
        weights = np.exp(scaled[ids])
        enough = weights.sum() >= options.top_p * total if options.top_p < 1 else False
        enough = enough or weights[-1] < options.min_p * weights[0]
        return ids if enough or len(ids) == size else _largest(scaled, size)

    def _check(self, top: np.float32) -> None:
        if np.isnan(top):
            raise RequestError(
                "the model's logits are not numbers (NaN) here; its weights may be damaged."
            )


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest values in falling order, lower index first among equals."""
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        ids = np.flatnonzero(values >= least)
    else:
        ids = np.arange(len(values))
    return ids[np.argsort(-values[ids], kind="stable")[:count]]
