"""gw.choose_keys: the earlier tokens that each token attends to, by scores of their own.

Small index queries and keys, a weight for each head: an indexer for sparse attention.
gw.cached_choose_keys does it over a paged cache of such keys, for ragged batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from graphwright.ir.masks import Mask
from graphwright.ir.op import Sample, declare

__all__ = ["cached_choose_keys", "choose_keys", "mark_largest", "marks"]


def index_scores(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ over h of weights[t, h] * relu(q[t, h] · k[s, h // (H / Hk)]), float32 [Tq, Tk]."""
    k = k.float().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    products = torch.einsum("qhd,khd->qhk", q.float(), k).relu()
    return torch.einsum("qh,qhk->qk", weights.float(), products)


def choose(scores: torch.Tensor, visible: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` best of each row among the visible ones, the lower place first where equal.

    scores float32 and visible bool [Tq, Tk] -> places int32 [Tq, count], rising; -1 behind the last
    where fewer are visible.
    """
    hidden = scores.shape[1]
    order = scores.masked_fill(~visible, float("-inf")).sort(descending=True, stable=True).indices
    order = order.masked_fill(~visible.gather(1, order), hidden)[:, :count]
    order = torch.nn.functional.pad(order, (0, count - order.shape[1]), value=hidden)
    places = order.sort(dim=1).values
    return places.masked_fill(places == hidden, -1).int()


def marks(chosen: torch.Tensor, length: int) -> torch.Tensor:
    """chosen int32 [T, count] of positions below `length`, or -1 -> bool [T, length]: is it one?"""
    found = torch.zeros(len(chosen), length + 1, dtype=torch.bool, device=chosen.device)
    return found.scatter(1, chosen.long() + 1, True)[:, 1:]


def _largest_samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    yield Sample((torch.randn(2, 5, 9),), {"k": 3}, "some")
    yield Sample((torch.randint(0, 3, (4, 9)).float(),), {"k": 5}, "ties")
    yield Sample((torch.randn(3, 4),), {"k": 6}, "fewer-than-k")


@declare(
    "mark_largest(Tensor x, *, int k) -> Tensor",
    meta=lambda x, *, k: x.new_empty(x.shape, dtype=torch.bool),
    samples=_largest_samples,
    exactness="exact",
)
def mark_largest(x: torch.Tensor, *, k: int) -> torch.Tensor:
    """Which of each row of x [..., N] are its k largest, of equal ones those of lower index.

    Returns bool [..., N]; all are, where N is at most k.
    """
    order = x.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros(x.shape, dtype=torch.bool).scatter(-1, order, True)


def _meta(q: torch.Tensor, *_: Any, count: int, **__: Any) -> torch.Tensor:
    return q.new_empty((q.shape[0], count), dtype=torch.int32)


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for heads, kv_heads, dim, count, mask in (
        (4, 1, 8, 3, "causal"),
        (2, 2, 6, 20, "causal"),
        (4, 2, 8, 2, "causal & window(5)"),
    ):
        q, k = torch.randn(9, heads, dim), torch.randn(9, kv_heads, dim)
        weights = torch.randn(9, heads)
        yield Sample((q, k, weights, torch.arange(9)), {"count": count, "mask": mask}, mask)


@declare(
    "choose_keys(Tensor q, Tensor k, Tensor weights, Tensor positions, *, int count, str mask) "
    "-> Tensor",
    meta=_meta,
    samples=_samples,
    exactness="exact",
)
def choose_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
    positions: torch.Tensor,
    *,
    count: int,
    mask: str,
) -> torch.Tensor:
    """The positions that each of the tokens of one sequence, from its first on, chooses.

    q [T, H, D], k [T, Hk, D], weights [T, H], positions int64 [T] of these tokens: of the positions
    s that `mask` shows to token t those `count` with the largest
    Σ over h of weights[t, h] * relu(q[t, h] · k[s, h // (H / Hk)]), of equal ones the lower.
    Returns int32 [T, count]: rising positions, and -1 behind them where fewer are visible. A
    factor of all scores that is positive changes nothing, so there is none.
    """
    visible = Mask.parse(mask).visible(positions[:, None], positions[None, :])
    return choose(index_scores(q, k, weights), visible, count)


def _cached_samples() -> Iterator[Sample]:
    torch.manual_seed(1)
    block_size, blocks = 4, 12
    table = torch.tensor([[3, 1, 8, 0], [2, 5, 0, 0], [7, 6, 4, 9]], dtype=torch.int32)
    # sequence 0 decodes its 10th token, 1 starts with 5, 2 continues at 7 with 3.
    positions = torch.tensor([9, 0, 1, 2, 3, 4, 7, 8, 9])
    start = torch.tensor([0, 1, 6, 9], dtype=torch.int32)
    for heads, kv_heads, dim, count, mask, dtype in (
        (4, 1, 8, 3, "causal", torch.float32),
        (4, 2, 6, 4, "causal & window(6)", torch.float32),
        (2, 1, 8, 2, "causal", torch.float16),
        (2, 2, 8, 12, "causal", torch.bfloat16),
    ):
        q, weights = torch.randn(9, heads, dim), torch.randn(9, heads)
        k = torch.randn(9, kv_heads, dim)
        cache = torch.randn(blocks, block_size, kv_heads, dim).to(dtype)
        kwargs = {"count": count, "mask": mask}
        name = f"{mask}, {str(dtype).removeprefix('torch.')}"
        yield Sample((q, k, weights, cache, positions, start, table), kwargs, name)


@declare(
    "cached_choose_keys(Tensor q, Tensor k, Tensor weights, Tensor(a!) cache, Tensor positions, "
    "Tensor query_start, Tensor block_table, *, int count, str mask) -> Tensor",
    meta=_meta,
    samples=_cached_samples,
    exactness="exact",
)
def cached_choose_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
    cache: torch.Tensor,
    positions: torch.Tensor,
    query_start: torch.Tensor,
    block_table: torch.Tensor,
    *,
    count: int,
    mask: str,
) -> torch.Tensor:
    """Writes k into the cache at `positions`, then chooses among each sequence's cached keys.

    q [T, H, D], k [T, Hk, D], weights [T, H]; cache [blocks, block_size, Hk, D] is modified, and
    rounds what is appended to its type. positions, query_start and block_table as in
    gw.cached_attention. Returns int32 [T, count] as gw.choose_keys.
    """
    block_size = cache.shape[1]
    rule = Mask.parse(mask)
    result = torch.full((q.shape[0], count), -1, dtype=torch.int32)
    for b, (begin, end) in enumerate(pairwise(query_start.tolist())):
        if begin == end:
            continue
        here = positions[begin:end]
        where = block_table[b, here // block_size].long(), here % block_size
        cache[where] = k[begin:end].to(cache.dtype)
        past = torch.arange(int(here[-1]) + 1)
        known = cache[block_table[b, past // block_size].long(), past % block_size]
        scores = index_scores(q[begin:end], known, weights[begin:end])
        visible = rule.visible(here[:, None], past[None, :])
        result[begin:end] = choose(scores, visible, count)
    return result
