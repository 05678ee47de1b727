"""How likely the model held a token to be, and which ones it held most likely."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.errors import RequestError

__all__ = ["TokenLogprobs", "token_logprobs"]


@dataclass(frozen=True)
class TokenLogprobs:
    """A token that was generated, or stands in the prompt, with its natural log probability. top:
    the most likely tokens and theirs, most likely first, the lower id first of equals; the token
    itself need not be among them.

    Probabilities are the model's own: the softmax of its logits as they are, before temperature,
    penalties, biases, grammars and what top-k, top-p and min-p leave. text_offset: characters of
    the output's (or the prompt's) text before this token, as far as they were certain then.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    text_offset: int = 0


def token_logprobs(
    logits: NDArray[np.float32], token: int, most: int, text_offset: int = 0
) -> TokenLogprobs:
    """Of `token` and the `most` most likely ones, by logits float32 [V].

    Raises RequestError when the logits hold NaN, or the largest is infinite.
    """
    largest = logits.max()
    if not np.isfinite(largest):
        raise RequestError(
            f"the largest of the model's logits is {largest} here, by which no token has a "
            "probability; its weights may be damaged, or its numbers too large for their type."
        )
    shifted = logits - largest
    total = float(np.log(np.exp(shifted).sum(dtype=np.float64)))
    top = _most_likely(logits, most)
    found = (shifted[[token, *top]].astype(np.float64) - total).tolist()
    return TokenLogprobs(
        token, found[0], tuple(zip(top.tolist(), found[1:], strict=True)), text_offset
    )


def _most_likely(logits: NDArray[np.float32], most: int) -> NDArray[np.intp]:
    """The ids of the `most` largest logits in falling order, the lower id first of equals."""
    if most == 0:
        return np.arange(0)
    ids = np.arange(len(logits))
    if most < len(logits):
        least = np.partition(logits, len(logits) - most)[len(logits) - most]
        ids = np.flatnonzero(logits >= least)
    return ids[np.argsort(-logits[ids], kind="stable")[:most]]
