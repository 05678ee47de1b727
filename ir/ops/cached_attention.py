"""gw.cached_attention: append keys and values to a paged cache, then attend; ragged batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from graphwright.ir.masks import Mask
from graphwright.ir.op import Sample, declare
from graphwright.ir.ops.attention import attend

__all__ = ["cached_attention"]


def _meta(q: torch.Tensor, *rest: Any, **_: Any) -> torch.Tensor:
    v_cache = rest[3]
    return q.new_empty((q.shape[0], q.shape[1], v_cache.shape[3]))


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    block_size, blocks = 4, 12
    table = torch.tensor([[3, 1, 8, 0], [2, 5, 0, 0], [7, 6, 4, 9]], dtype=torch.int32)
    for heads, kv_heads, dim, value_dim, mask, softcap, extra in (
        (4, 2, 16, 16, "causal", 0.0, False),
        (2, 2, 8, 4, "causal & window(3)", 5.0, False),
        (6, 1, 8, 8, "causal & chunk(4)", 0.0, True),
    ):
        # sequence 0 decodes its 10th token, 1 starts with 5, 2 continues at 7 with 3.
        positions = torch.tensor([9, 0, 1, 2, 3, 4, 7, 8, 9])
        start = torch.tensor([0, 1, 6, 9], dtype=torch.int32)
        tokens = len(positions)
        caches = (
            torch.randn(blocks, block_size, kv_heads, dim),
            torch.randn(blocks, block_size, kv_heads, value_dim),
        )
        q, k = torch.randn(tokens, heads, dim), torch.randn(tokens, kv_heads, dim)
        v = torch.randn(tokens, kv_heads, value_dim)
        extras = (torch.rand(heads), torch.randn(heads)) if extra else (None, None)
        kwargs = {"scale": dim**-0.5, "mask": mask, "softcap": softcap}
        yield Sample((q, k, v, *caches, positions, start, table, *extras), kwargs, mask)


@declare(
    "cached_attention(Tensor q, Tensor? k, Tensor? v, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "Tensor positions, Tensor query_start, Tensor block_table, Tensor? slopes, Tensor? sinks, *, "
    "float scale, str mask, float softcap) -> Tensor",
    meta=_meta,
    samples=_samples,
)
def cached_attention(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    query_start: torch.Tensor,
    block_table: torch.Tensor,
    slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    *,
    scale: float,
    mask: str,
    softcap: float,
) -> torch.Tensor:
    """Writes k, v into the caches at `positions`, then attends over each sequence's cache.

    q [T, H, D], k [T, Hkv, D], v [T, Hkv, Dv]; k_cache [blocks, block_size, Hkv, D] and v_cache
    [blocks, block_size, Hkv, Dv] are modified. Tokens query_start[b] .. query_start[b+1] (int32
    [B+1]) belong to sequence b; their cache position p = positions[t] (int64 [T], rising by one
    within a sequence) lies in block block_table[b, p // block_size] (int32 [B, M]) at
    p % block_size.
    With k and v None the cache already holds this step's keys (shared by another node).
    Returns [T, H, Dv]. Mask, slopes, sinks and softcap as in gw.attention.
    """
    block_size = k_cache.shape[1]
    rule = Mask.parse(mask)
    result = q.new_zeros((q.shape[0], q.shape[1], v_cache.shape[3]))
    bounds = query_start.tolist()
    for b, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            continue
        here = positions[begin:end]
        if k is not None and v is not None:
            where = block_table[b, here // block_size].long(), here % block_size
            k_cache[where] = k[begin:end].to(k_cache.dtype)
            v_cache[where] = v[begin:end].to(v_cache.dtype)
        past = torch.arange(int(here[-1]) + 1)
        where = block_table[b, past // block_size].long(), past % block_size
        result[begin:end] = attend(
            q[begin:end],
            k_cache[where],
            v_cache[where],
            rule.visible(here[:, None], past[None, :]),
            past[None, :] - here[:, None],
            slopes,
            sinks,
            scale,
            softcap,
        )
    return result
