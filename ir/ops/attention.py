"""gw.attention: self-attention over the tokens of one sequence, without a cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.masks import Mask
from graphwright.ir.op import Sample, declare
from graphwright.ir.ops.choose_keys import marks

__all__ = ["attend", "attention"]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    distance: torch.Tensor,
    slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv], visible and distance [Tq, Tk] -> [Tq, H, Dv].

    distance = key position - query position; slopes [H] multiply it (ALiBi). sinks [H] are logits
    of one extra key with value zero. A row that sees no key gives zeros.
    """
    heads, shared = q.shape[1], q.shape[1] // k.shape[1]
    k = k.float().repeat_interleave(shared, dim=1)
    v = v.float().repeat_interleave(shared, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if slopes is not None:
        scores = scores + slopes.float()[:, None, None] * distance.float()
    scores = scores.masked_fill(~visible, float("-inf"))
    sink = (
        torch.full((heads, 1, 1), float("-inf")) if sinks is None else sinks.float()[:, None, None]
    )
    top = torch.maximum(scores.amax(-1, keepdim=True), sink)
    top = torch.where(top.isinf(), torch.zeros_like(top), top)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True) + torch.exp(sink - top)
    weights = weights / torch.where(total == 0, torch.ones_like(total), total)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


def _meta(q, k, v, positions, slopes, sinks, chosen=None, *, scale, mask, softcap):  # type: ignore[no-untyped-def]
    return q.new_empty((q.shape[0], q.shape[1], v.shape[2]))


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for heads, kv_heads, dim, value_dim, mask, softcap, extra in (
        (4, 2, 16, 16, "causal", 0.0, False),
        (4, 4, 16, 8, "causal & window(3)", 5.0, False),
        (6, 1, 8, 8, "causal & chunk(4)", 0.0, True),
        (2, 2, 8, 8, "causal & (window(2) | first(1))", 0.0, True),
    ):
        q, k = torch.randn(9, heads, dim), torch.randn(9, kv_heads, dim)
        v = torch.randn(9, kv_heads, value_dim)
        extras = (torch.rand(heads), torch.randn(heads)) if extra else (None, None)
        kwargs = {"scale": dim**-0.5, "mask": mask, "softcap": softcap}
        yield Sample((q, k, v, torch.arange(9), *extras), kwargs, mask)
    some = torch.tensor([[0, -1]] * 2 + [[0, 1], [1, 3], [0, 4], [2, 5], [5, 6], [3, 4], [7, 8]])
    kwargs = {"scale": 0.3, "mask": "causal", "softcap": 0.0}
    q, k, v = torch.randn(9, 4, 8), torch.randn(9, 4, 8), torch.randn(9, 4, 6)
    yield Sample((q, k, v, torch.arange(9), None, None, some.int()), kwargs, "chosen keys")


@declare(
    "attention(Tensor q, Tensor k, Tensor v, Tensor positions, Tensor? slopes, Tensor? sinks, "
    "Tensor? chosen=None, *, float scale, str mask, float softcap) -> Tensor",
    meta=_meta,
    samples=_samples,
)
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    chosen: torch.Tensor | None = None,
    *,
    scale: float,
    mask: str,
    softcap: float,
) -> torch.Tensor:
    """softmax(softcap(q·k * scale) + slopes * (key - query), masked) · v.

    q [T, H, D], k [T, Hkv, D], v [T, Hkv, Dv], positions int64 [T] of these tokens -> [T, H, Dv].
    Query head h reads key head h // (H / Hkv). softcap 0 means none. chosen int32 [T, count], of
    gw.choose_keys: token t sees no other positions than those, and of them what the mask shows.
    """
    distance = positions[None, :] - positions[:, None]
    visible = Mask.parse(mask).visible(positions[:, None], positions[None, :])
    if chosen is not None:
        visible = visible & marks(chosen, int(positions.max()) + 1)[:, positions]
    return attend(q, k, v, visible, distance, slopes, sinks, scale, softcap)
