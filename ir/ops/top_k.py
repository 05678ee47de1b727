"""gw.top_k: the largest values of each row, with a defined order of equal ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.op import Sample, declare

__all__ = ["top_k"]


def _meta(x, *, k):  # type: ignore[no-untyped-def]
    shape = (*x.shape[:-1], k)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for tokens, n, k in ((1, 8, 2), (5, 33, 4), (3, 6, 6), (2, 5, 1)):
        yield Sample((torch.randn(tokens, n),), {"k": k}, f"{tokens}x{n}x{k}")
    yield Sample((torch.randint(0, 3, (4, 9)).float(),), {"k": 5}, "ties")


@declare(
    "top_k(Tensor x, *, int k) -> (Tensor values, Tensor indices)",
    meta=_meta,
    samples=_samples,
    exactness="exact",
)
def top_k(x: torch.Tensor, *, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row, largest first; of equal ones the lower index first.

    x [T, E] -> values [T, k], indices int64 [T, k].
    """
    values, indices = torch.sort(x, dim=-1, descending=True, stable=True)
    return values[..., :k].contiguous(), indices[..., :k].contiguous()
