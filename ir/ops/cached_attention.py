"""gw.cached_attention: append keys and values to a paged cache, then attend; ragged batches.

The cache may be of another type than they are: float16, bfloat16 and float8 round, int8 quantizes
each key and each value of a head by its own scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from graphwright.ir.masks import Mask
from graphwright.ir.op import Sample, declare
from graphwright.ir.ops.attention import attend
from graphwright.ir.ops.choose_keys import marks
from graphwright.ir.schemes import quantize_activation

__all__ = ["cached_attention"]


def _meta(q: torch.Tensor, *rest: Any, **_: Any) -> torch.Tensor:
    v_cache = rest[3]
    return q.new_empty((q.shape[0], q.shape[1], v_cache.shape[3]))


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    block_size, blocks = 4, 12
    table = torch.tensor([[3, 1, 8, 0], [2, 5, 0, 0], [7, 6, 4, 9]], dtype=torch.int32)
    for heads, kv_heads, dim, value_dim, mask, softcap, extra, dtype in (
        (4, 2, 16, 16, "causal", 0.0, False, torch.float32),
        (2, 2, 8, 4, "causal & window(3)", 5.0, False, torch.float32),
        (6, 1, 8, 8, "causal & chunk(4)", 0.0, True, torch.float32),
        (4, 2, 16, 8, "causal", 0.0, False, torch.float16),
        (4, 2, 8, 16, "causal & window(3)", 0.0, True, torch.bfloat16),
        (4, 2, 8, 8, "causal", 0.0, False, torch.float8_e4m3fn),
        (4, 2, 16, 8, "causal", 0.0, True, torch.int8),
    ):
        # sequence 0 decodes its 10th token, 1 starts with 5, 2 continues at 7 with 3.
        positions = torch.tensor([9, 0, 1, 2, 3, 4, 7, 8, 9])
        start = torch.tensor([0, 1, 6, 9], dtype=torch.int32)
        tokens = len(positions)
        caches: tuple[torch.Tensor, ...] = (
            torch.randn(blocks, block_size, kv_heads, dim),
            torch.randn(blocks, block_size, kv_heads, value_dim),
        )
        scales: tuple[torch.Tensor, ...] = ()
        if dtype is torch.int8:
            caches, scales = zip(*map(_quantize, caches), strict=True)
        q, k = torch.randn(tokens, heads, dim), torch.randn(tokens, kv_heads, dim)
        v = torch.randn(tokens, kv_heads, value_dim)
        extras = (torch.rand(heads), torch.randn(heads)) if extra else (None, None)
        kwargs = {"scale": dim**-0.5, "mask": mask, "softcap": softcap}
        caches = tuple(cache.to(dtype) for cache in caches)
        name = f"{mask}, {str(dtype).removeprefix('torch.')}"
        given = (q, k, v, *caches, positions, start, table, *extras, *(scales or (None, None)))
        yield Sample(given, kwargs, name)
        if mask == "causal":
            chosen = torch.stack([positions // 2, positions], 1).int()
            chosen[positions == 0, 1] = -1
            yield Sample((*given, chosen), kwargs, f"{name}, chosen keys")


@declare(
    "cached_attention(Tensor q, Tensor? k, Tensor? v, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "Tensor positions, Tensor query_start, Tensor block_table, Tensor? slopes, Tensor? sinks, "
    "Tensor(c!)? k_scale=None, Tensor(d!)? v_scale=None, Tensor? chosen=None, *, float scale, "
    "str mask, float softcap) -> Tensor",
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
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
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
    Caches of int8 come with k_scale and v_scale, float32 [blocks, block_size, Hkv]: what is
    appended becomes q = round(x / scale) with scale = max|x| / 127 over its channels, and counts as
    q * scale from then on. Caches of another float type round what is appended, of float8 (e4m3)
    to what lies between -448 and 448.
    Returns [T, H, Dv]. Mask, slopes, sinks, softcap and chosen (positions within each sequence) as
    in gw.attention.
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
            _write(k_cache, k_scale, where, k[begin:end])
            _write(v_cache, v_scale, where, v[begin:end])
        past = torch.arange(int(here[-1]) + 1)
        where = block_table[b, past // block_size].long(), past % block_size
        visible = rule.visible(here[:, None], past[None, :])
        if chosen is not None:
            visible = visible & marks(chosen[begin:end], len(past))
        result[begin:end] = attend(
            q[begin:end],
            _read(k_cache, k_scale, where),
            _read(v_cache, v_scale, where),
            visible,
            past[None, :] - here[:, None],
            slopes,
            sinks,
            scale,
            softcap,
        )
    return result


_Where = tuple[torch.Tensor, torch.Tensor]  # blocks and the positions in them


def _write(
    cache: torch.Tensor, scale: torch.Tensor | None, where: _Where, values: torch.Tensor
) -> None:
    if scale is None and cache.dtype is torch.float8_e4m3fn:
        most = torch.finfo(cache.dtype).max
        cache.view(torch.uint8)[where] = values.clamp(-most, most).to(cache.dtype).view(torch.uint8)
    elif scale is None:
        cache[where] = values.to(cache.dtype)
    else:
        cache[where], scale[where] = _quantize(values)


def _read(cache: torch.Tensor, scale: torch.Tensor | None, where: _Where) -> torch.Tensor:
    if cache.dtype is torch.float8_e4m3fn:
        return cache.view(torch.uint8)[where].view(cache.dtype).float()
    values = cache[where].float()
    return values if scale is None else values * scale[where][..., None]


def _quantize(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., D] -> int8 [..., D] and float32 scales [...]."""
    integers, scale = quantize_activation(values, 1)
    return integers, scale[..., 0]
