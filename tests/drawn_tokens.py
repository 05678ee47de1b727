"""What a step says of a row that it chooses the token of: by sorting, where kernels search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.draws import Draw

__all__ = ["chosen_token", "kept_weights"]

_ONE = 1 << 44  # the weight of the largest logit


def chosen_token(logits: NDArray[np.float32], draw: Draw) -> int:
    """-1 where a logit is NaN, -2 where the largest is infinite and one is to be drawn."""
    if np.isnan(logits).any():
        return -1
    if _lower(draw[1]) == 1:
        return int(logits.argmax())
    if np.isinf(logits.max()):
        return -2
    ids, weights = kept_weights(logits, draw)
    target = _share(int(weights.sum()), draw[0])
    return int(ids[np.searchsorted(np.cumsum(weights), target, side="right")])


def kept_weights(
    logits: NDArray[np.float32], draw: Draw
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Tokens that may be drawn, in the order of their sums, and their weights."""
    _, rule, top_p, lead = draw
    top_k, scale = _lower(rule), np.int32(rule >> 32).view(np.float32)
    best, lowest = logits.max(), np.int32(_lower(lead)).view(np.float32)
    weights = (np.exp2((logits - best) * scale) * np.float32(_ONE)).astype(np.int64)
    if top_k == 0 and top_p == 0 and lowest == -np.inf:
        return np.arange(len(logits)), weights
    ids = np.argsort(-logits, kind="stable")
    weights = weights[ids]
    count = top_k or len(ids)
    if top_p:
        before = np.cumsum(weights) - weights
        need = -_share(-int(weights[:count].sum()), top_p)  # rounded up
        count = int((before[:count] < need).sum())
    count = min(count, int((logits[ids] >= best + lowest).sum()))
    return ids[:count], weights[:count]


def _share(mass: int, share: int) -> int:
    """`share`: 64 bits behind the point."""
    return mass * (share & (1 << 64) - 1) >> 64


def _lower(word: int) -> int:
    """The lower half of a word, signed."""
    half = word & 0xFFFFFFFF
    return half - (1 << 32) if half >> 31 else half
