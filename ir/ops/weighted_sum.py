"""gw.weighted_sum: what a token's experts gave, added up by their weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.op import Sample, declare

__all__ = ["weighted_sum"]


def _meta(y, weights):  # type: ignore[no-untyped-def]
    return y.new_empty((y.shape[0], y.shape[2]))


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for tokens, slots, n in ((1, 2, 48), (5, 1, 33), (7, 4, 17)):
        yield Sample(
            (torch.randn(tokens, slots, n), torch.rand(tokens, slots)), {}, f"{tokens}x{slots}x{n}"
        )


@declare("weighted_sum(Tensor y, Tensor weights) -> Tensor", meta=_meta, samples=_samples)
def weighted_sum(y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ_s weights[t, s] * y[t, s], in order of s. y [T, S, N], weights [T, S] -> [T, N]."""
    parts = y.float() * weights.float()[:, :, None]
    total = parts[:, 0]
    for slot in range(1, y.shape[1]):
        total = total + parts[:, slot]
    return total.to(y.dtype)
