"""Attention that is none of ours, and results that mix tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from broken_decoder import CONTEXT, HEAD_SIZE, HEADS, VOCAB, broken, causal
from torch import Tensor, nn


@broken("attend", "every token sees every later one")
def attention_in_both_directions(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    return F.scaled_dot_product_attention(q, k, v)


@broken("attend", "attention mask", "depends on the content of the tokens")
def mask_of_padding(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    mask = causal(q.shape[2]) & (ids != 0)[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, mask)


@broken("attend", "attention mask", "depends on the content of the tokens")
def bias_of_content(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    bias = torch.where(causal(q.shape[2]), 0.0, float("-inf")) + h.mean(-1)[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, bias)


@broken("attend", "not causal", "sees key")
def mask_of_a_fixed_prefix(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    mask = causal(q.shape[2]) | (torch.arange(q.shape[2]) < 4)
    return F.scaled_dot_product_attention(q, k, v, mask)


@broken("attend", "not causal", "sees key")
def mask_of_the_first_half(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    length = q.shape[2]
    mask = causal(length) | (torch.arange(length) * 2 < length)
    return F.scaled_dot_product_attention(q, k, v, mask)


@broken("attend", "is not in the mask algebra")
def window_from_the_end(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(q.shape[2])
    mask = causal(q.shape[2]) & ((place >= place[-1] - 8) | (place == place[:, None]))
    return F.scaled_dot_product_attention(q, k, v, mask)


@broken(
    "attend",
    "attention bias",
    "is no ALiBi bias",
    bias=lambda: nn.Parameter(torch.zeros(CONTEXT, CONTEXT)),
)
def mask_of_learned_entries(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    length = q.shape[2]
    bias = m.bias[:length, :length].masked_fill(~causal(length), float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, bias)


@broken("attend", "k.roll(1, 2)", "computes with the number of tokens")
def keys_of_the_token_before(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    return F.scaled_dot_product_attention(q, k.roll(1, 2), v, is_causal=True)


@broken("attend", "multiplies scores by zero", "does not hide these keys")
def scores_multiplied_by_a_mask_alone(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    return (q @ k.transpose(-1, -2) * causal(q.shape[2]).float()).softmax(-1) @ v


@broken("attend", "aten.cumsum", "works along the token axis")
def values_summed_up(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return F.scaled_dot_product_attention(q, k, v.cumsum(2), is_causal=True)


@broken("attend", "aten.matmul", "multiplies every token with every other one")
def linear_attention(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    scores = (q @ k.transpose(-1, -2)).tril()
    return scores @ v


@broken("attend", "scores.softmax(-2)", "normalizes over queries")
def softmax_over_queries(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    scores = (q @ k.transpose(-1, -2)).masked_fill(~causal(q.shape[2]), -1e9)
    return scores.softmax(-2) @ v


@broken("attend", "softmax", "is no attention", "scores.softmax(-1)")
def attention_normalized_twice(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    scores = (q @ k.transpose(-1, -2)).masked_fill(~causal(q.shape[2]), float("-inf"))
    weights = scores.softmax(-1)
    return (weights / weights.sum(-2, keepdim=True)) @ v


@broken("attend", "reshapes tokens into another axis", ".reshape(1, HEADS, -1, HEAD_SIZE)")
def heads_taken_for_tokens(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    q, k, v = (x.transpose(1, 2).reshape(1, HEADS, -1, HEAD_SIZE) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@broken("attend", "'div' multiplies the scores by something that is no constant", "scores")
def scores_scaled_by_the_length(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    scores = (q @ k.transpose(-1, -2)) / q.shape[2]
    return scores.masked_fill(~causal(q.shape[2]), float("-inf")).softmax(-1) @ v


@broken("attend", "takes another path for 2 tokens", "1, tokens")
def attention_scaled_by_the_length(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / q.shape[2])


@broken("attend", "attention mask", "depends on the content of the tokens")
def mask_of_the_scores(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    scores = (q @ k.transpose(-1, -2)).masked_fill(~causal(q.shape[2]), float("-inf"))
    return scores.masked_fill(scores < 0, -1e4).softmax(-1) @ v


@broken("attend", "attention mask", "depends on the content of the tokens")
def best_scores_only(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    scores = (q @ k.transpose(-1, -2)).masked_fill(~causal(q.shape[2]), float("-inf"))
    best = scores.amax(-1, keepdim=True)
    return scores.masked_fill(scores < best, float("-inf")).softmax(-1) @ v


@broken("attend", "is not in the mask algebra")
def mask_without_the_own_key(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    place = torch.arange(q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, place[None] < place[:, None])


@broken("attend", "k[:, :, 1:]", "takes some of the tokens")
def keys_without_the_first(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return F.scaled_dot_product_attention(q, k[:, :, 1:], v[:, :, 1:])


@broken("attend", "aten.flip", "works along the token axis")
def keys_reversed(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return F.scaled_dot_product_attention(q, k.flip(2), v.flip(2), is_causal=True)


@broken("attend", "scaled_dot_product_attention", "draws random numbers")
def attention_with_dropout(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1, is_causal=True)


@broken("result", "[1, tokens, vocabulary]", "[1, 32]")
def pooled_logits(m: Any, logits: Tensor) -> Any:
    return logits.mean(1)


@broken("result", "one row per token")
def logits_of_the_last_token_only(m: Any, logits: Tensor) -> Any:
    return logits[:, -1:]


@broken("result", "takes some of the tokens")
def logits_of_the_last_token_for_all(m: Any, logits: Tensor) -> Any:
    return logits[:, -1:].expand(1, logits.shape[1], VOCAB)


@broken("result", "works along the token axis")
def logits_normalized_over_tokens(m: Any, logits: Tensor) -> Any:
    return logits.log_softmax(1)
