"""Attention to keys that tokens choose, by scores that no cache can serve; and near misses.

Each attends to the CHOSEN keys with the largest of some scores [1, T, T], as `choosing` does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from broken_decoder import CONTEXT, HEADS, WIDTH, broken, causal, sound
from torch import Tensor, nn

CHOSEN, INDEX_HEADS, INDEX_SIZE = 5, 12, 4  # so many heads that no two scores are zero
_LAYERS: dict[str, Callable[[], Any]] = {
    "index_q": lambda: nn.Linear(WIDTH, INDEX_HEADS * INDEX_SIZE),
    "index_k": lambda: nn.Linear(WIDTH, INDEX_SIZE),
    "index_w": lambda: nn.Linear(WIDTH, INDEX_HEADS),
}


def products(m: Any, h: Tensor) -> Tensor:
    """[1, T, H, T] of index queries and keys."""
    q = m.index_q(h).view(1, -1, INDEX_HEADS, INDEX_SIZE)
    found: Tensor = q @ m.index_k(h).transpose(1, 2)[:, None]
    return found


def scores(m: Any, h: Tensor) -> Tensor:
    """[1, T, T]: those of an indexer."""
    weights = m.index_w(h)[:, :, None]
    found: Tensor = (weights @ products(m, h).relu())[:, :, 0]
    return found


def choosing(
    q: Tensor, k: Tensor, v: Tensor, found: Tensor, seen: Any = None, count: int = CHOSEN
) -> Tensor:
    """Attention to the keys with the largest values in `found`, of those in `seen`: causal ones."""
    length = q.shape[2]
    places = found.topk(min(count, length), dim=-1).indices
    chosen = torch.zeros(1, length, length, dtype=torch.bool).scatter(-1, places, True)
    seen = causal(length) if seen is None else seen
    return F.scaled_dot_product_attention(q, k, v, seen & chosen[:, None])


def hidden(found: Tensor) -> Tensor:
    return found.masked_fill(~causal(found.shape[-1]), float("-inf"))


def sinful(*words: str) -> Callable[..., Any]:
    return broken("attend", *words, **_LAYERS)


@sinful("chooses among the keys of all tokens, later ones too")
def keys_chosen_among_later_ones(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    return choosing(q, k, v, scores(m, h))


@sinful("sees keys by the mask 'causal & window(7)'", "chooses them by 'causal'")
def chosen_keys_that_a_window_hides(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    place = torch.arange(q.shape[2])
    near = causal(q.shape[2]) & (place[:, None] - place[None] < 7)
    return choosing(q, k, v, hidden(scores(m, h)), near)


@sinful("is not followed by relu")
def keys_chosen_by_plain_products(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    weights = m.index_w(h)[:, :, None]
    return choosing(q, k, v, hidden((weights @ products(m, h))[:, :, 0]))


@sinful("multiplies the scores by -0.5")
def the_least_of_scores(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return choosing(q, k, v, hidden(scores(m, h) * -0.5))


@sinful("(aten.topk.default)", "computes with the number of tokens")
def the_smallest_of_scores(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    length = q.shape[2]
    places = hidden(scores(m, h)).topk(min(CHOSEN, length), dim=-1, largest=False).indices
    chosen = torch.zeros(1, length, length, dtype=torch.bool).scatter(-1, places, True)
    return F.scaled_dot_product_attention(q, k, v, causal(length) & chosen[:, None])


@sinful("is none of the ops that are known there")
def keys_chosen_by_squares(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return choosing(q, k, v, hidden(scores(m, h).square()))


@sinful("multiplies the scores by something that is no constant")
def padding_is_chosen_last(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return choosing(q, k, v, hidden(scores(m, h) * (ids != 0)[:, None]))


@sinful("does not weigh heads by the token")
def heads_weighed_by_the_key(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    weights = m.index_w(h).transpose(1, 2)[:, None]  # [1, 1, H, T]
    return choosing(q, k, v, hidden((products(m, h).relu() * weights).sum(2)))


@sinful("attention mask", "depends on the content of the tokens")
def all_keys_but_the_chosen(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    length = q.shape[2]
    places = hidden(scores(m, h)).topk(min(CHOSEN, length), dim=-1).indices
    left = torch.ones(1, length, length, dtype=torch.bool).scatter(-1, places, False)
    left = left | (torch.arange(length)[:, None] == torch.arange(length))
    return F.scaled_dot_product_attention(q, k, v, causal(length) & left[:, None])


@sinful("sees only keys that both")
def keys_chosen_twice(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    length, found = q.shape[2], hidden(scores(m, h))
    places = (found * 0.5).topk(min(CHOSEN + 3, length), dim=-1).indices
    more = torch.zeros(1, length, length, dtype=torch.bool).scatter(-1, places, True)
    return choosing(q, k, v, found, causal(length) & more[:, None])


@broken("attend", "fall with their distance", **_LAYERS)
def scores_with_a_bias_by_distance(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    place = torch.arange(q.shape[2])
    return choosing(q, k, v, hidden(scores(m, h) + 0.1 * (place[None] - place[:, None])))


@sinful("(aten.topk.default)", "computes with the number of tokens")
def a_share_of_the_keys(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return choosing(q, k, v, hidden(scores(m, h)), count=(q.shape[2] + 1) // 2)


@sinful("attention mask", "depends on the content of the tokens")
def one_choice_by_the_last_token(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    length = q.shape[2]
    found = hidden(scores(m, h))[:, -1:]
    places = found.topk(min(CHOSEN, length), dim=-1).indices
    chosen = torch.zeros(1, 1, length, dtype=torch.bool).scatter(-1, places, True)
    return F.scaled_dot_product_attention(q, k, v, causal(length) & chosen[:, None])


# ---- near misses


@sound("attend", **_LAYERS)
def keys_that_an_indexer_chooses(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    return choosing(q, k, v, hidden(scores(m, h)))


@sound("attend", **_LAYERS)
def more_keys_than_there_are(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    return choosing(q, k, v, hidden(scores(m, h)), count=CONTEXT)


@sound("attend", **_LAYERS)
def chosen_within_a_window(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(q.shape[2])
    near = causal(q.shape[2]) & (place[:, None] - place[None] < 12)
    return choosing(q, k, v, scores(m, h).masked_fill(~near, float("-inf")), near)


@sound("attend", **_LAYERS)
def scores_summed_over_an_axis_of_heads(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    """Heads in front, as attention has them, a key head for two of them, and a sum of products."""
    length = q.shape[2]
    index_q = m.index_q(h).view(1, -1, INDEX_HEADS, INDEX_SIZE).transpose(1, 2)
    index_k = m.index_k(h).view(1, -1, 2, INDEX_SIZE // 2).repeat(1, 1, 1, 2).transpose(1, 2)
    index_k = index_k.repeat_interleave(INDEX_HEADS // 2, dim=1)
    found = (index_q @ index_k.transpose(2, 3) / 3).clamp(min=0)
    found = (found * m.index_w(h).transpose(1, 2)[..., None]).sum(1) * 2
    bias = torch.where(causal(length), 0.0, torch.finfo(torch.float32).min)
    places = (found + bias).topk(min(CHOSEN, length), dim=-1).indices
    chosen = torch.full((1, length, length), float("-inf")).scatter(-1, places, 0.0)
    mask = chosen[:, None] + bias
    weights = (q @ k.transpose(2, 3) * 0.5 + mask).softmax(-1)
    return weights @ v


@sound("attend", **_LAYERS)
def a_choice_that_heads_share(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    length = q.shape[2]
    places = hidden(scores(m, h)).topk(min(CHOSEN, length), dim=-1).indices
    left = torch.ones(1, length, length, dtype=torch.bool).scatter(-1, places, False)
    left = left[:, None].expand(-1, HEADS, -1, -1)
    lowest = torch.finfo(torch.float32).min
    mask = torch.where(causal(length), 0.0, lowest).masked_fill(left, lowest)
    return F.scaled_dot_product_attention(q, k, v, mask)
