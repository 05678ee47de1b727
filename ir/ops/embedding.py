"""gw.embedding and gw.quantized_embedding: rows of a table."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.op import Sample, declare
from graphwright.ir.schemes import dequantize, quantize_weight

__all__ = ["embedding", "quantized_embedding"]


def _meta(weight, ids):  # type: ignore[no-untyped-def]
    return weight.new_empty((*ids.shape, weight.shape[1]), dtype=_widened(weight.dtype))


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _quantized_meta(weight, scale, ids, zero=None, *, scheme):  # type: ignore[no-untyped-def]
    return scale.new_empty((*ids.shape, weight.shape[1]), dtype=torch.float32)


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    yield Sample((torch.randn(11, 24), torch.tensor([3, 0, 10])), {}, "one axis")
    yield Sample((torch.randn(7, 5), torch.tensor([[6, 1]])), {}, "two axes")
    for dtype in (torch.bfloat16, torch.float16):
        yield Sample((torch.randn(11, 24).to(dtype), torch.tensor([3, 0, 10])), {}, str(dtype))


def _quantized_samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for scheme in ("w8", "w8g32", "w4g32", "w4g64z"):
        weight, scale, *zero = quantize_weight(torch.randn(11, 64), scheme)
        yield Sample((weight, scale, torch.tensor([3, 0, 10]), *zero), {"scheme": scheme}, scheme)


@declare("embedding(Tensor weight, Tensor ids) -> Tensor", meta=_meta, samples=_samples,
         exactness="exact")  # fmt: skip
def embedding(weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """weight[ids]. weight [V, K], ids int64 [...] -> [..., K], float32 for 16-bit floats."""
    return weight[ids].to(_widened(weight.dtype))


@declare(
    "quantized_embedding(Tensor weight, Tensor scale, Tensor ids, Tensor? zero=None, *, "
    "str scheme) -> Tensor",
    meta=_quantized_meta,
    samples=_quantized_samples,
    exactness="exact",
)
def quantized_embedding(
    weight: torch.Tensor,
    scale: torch.Tensor,
    ids: torch.Tensor,
    zero: torch.Tensor | None = None,
    *,
    scheme: str,
) -> torch.Tensor:
    """((weight - zero) * scale)[ids]. weight int8 [V, K], scale [V, groups], zero uint8 alike ->
    float32 [..., K]."""
    return dequantize(weight[ids], scale[ids], None if zero is None else zero[ids])
