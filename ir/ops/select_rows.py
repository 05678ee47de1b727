"""gw.select_rows: keep only the tokens whose logits are wanted."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.op import Sample, declare

__all__ = ["select_rows"]


def _meta(x, rows):  # type: ignore[no-untyped-def]
    return x.new_empty((rows.shape[0], *x.shape[1:]))


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    yield Sample((torch.randn(6, 24), torch.tensor([5, 2], dtype=torch.int32)), {}, "two rows")


@declare("select_rows(Tensor x, Tensor rows) -> Tensor", meta=_meta, samples=_samples,
         exactness="exact")  # fmt: skip
def select_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """x[rows]. x [T, ...], rows int32 [R] -> [R, ...]."""
    return x[rows.long()]
