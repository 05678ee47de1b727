"""What a step is told of a row whose token it draws by itself: four int64 words.

0: the random number, 64 bits behind the point. 1: the lower half is top_k, 0 when none is cut off
by it and 1 for the largest logit, the upper half float32 log2(e) / temperature. 2: top_p, 64 bits
behind the point, 0 for all. 3: in the lower half, how far below the largest a logit may be by
min_p, float32, -inf for any. backends/triton/kernels/draw.py reads them.
"""

from __future__ import annotations

import math
import struct
from typing import TypeAlias

from graphwright.runtime.sampling_params import Sampling

__all__ = ["LARGEST", "WORDS", "Draw", "draw_rule", "random_word"]

WORDS = 4
_LOWEST = -1e38  # about what float32 holds
_FLATTEST, _STEEPEST = 1e-37, 1e30  # scales by which all weights are one, and all others none

Draw: TypeAlias = tuple[int, int, int, int]
LARGEST: Draw = (0, 1, 0, 0)  # the largest logit's token


def draw_rule(sampling: Sampling, vocab_size: int) -> tuple[int, int, int]:
    """The words behind the random number, for a temperature above 0."""
    top_k = sampling.top_k if sampling.top_k < vocab_size else 0
    scale = min(max(_FLATTEST, math.log2(math.e) / sampling.temperature), _STEEPEST)
    lead = -math.inf
    if sampling.min_p > 0:
        lead = max(_LOWEST, sampling.temperature * math.log(sampling.min_p))
    top_p = max(1, int(sampling.top_p * 2.0**64)) if sampling.top_p < 1 else 0
    return _bits(scale) << 32 | top_k, _signed(top_p), _bits(lead) & 0xFFFFFFFF


def random_word(number: float) -> int:
    """A random number of [0, 1) as its word."""
    return _signed(int(number * 2.0**64))


def _bits(value: float) -> int:
    """Those of float32, as a signed number."""
    bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return bits


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
