"""gw.rope: rotary position embedding by tables of cosines and sines."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.op import Sample, declare

__all__ = ["rope"]


def _meta(x, cos, sin, *, interleaved):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for heads, dim, rotary, interleaved in ((4, 16, 16, False), (2, 24, 8, False), (3, 8, 8, True)):
        angle = torch.randn(5, rotary)
        x = torch.randn(5, heads, dim)
        yield Sample((x, angle.cos(), angle.sin()), {"interleaved": interleaved}, f"{dim}-{rotary}")


@declare(
    "rope(Tensor x, Tensor cos, Tensor sin, *, bool interleaved) -> Tensor",
    meta=_meta,
    samples=_samples,
)
def rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool
) -> torch.Tensor:
    """Rotates the first R channels of each head, x * cos + rotate(x) * sin; others pass through.

    x [T, H, D], cos and sin [T, R], R <= D. rotate(x) is cat(-x[R/2:R], x[:R/2]), or, interleaved,
    x'[2i] = -x[2i+1], x'[2i+1] = x[2i]. Source: Su et al., arXiv 2104.09864.
    """
    size = cos.shape[-1]
    turned, rest = x[..., :size].float(), x[..., size:]
    if interleaved:
        rotated = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    else:
        rotated = torch.cat((-turned[..., size // 2 :], turned[..., : size // 2]), dim=-1)
    result = turned * cos.float()[:, None] + rotated * sin.float()[:, None]
    return torch.cat((result.to(x.dtype), rest), dim=-1)
