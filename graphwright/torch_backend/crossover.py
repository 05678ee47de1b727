"""From how many rows on torch's products are faster than ours by weights left as they are."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch

from graphwright.runtime.cpu import cpu_features

__all__ = ["most_rows"]

_FLOAT32_ROWS = 256
_HALF_ROWS = 16
_HALF_FEATURES = {"amx_bf16", "avx512_bf16"}


def most_rows(types: AbstractSet[torch.dtype]) -> int | None:
    """The most rows for which native code computes a part whose weights are of these types; None:
    for any. Only for weights that were not quantized, where torch computes the same.
    """
    if types == {torch.float32}:
        return _FLOAT32_ROWS
    if types <= {torch.bfloat16} and _HALF_FEATURES & set(cpu_features()):
        return _HALF_ROWS
    return None
