"""What looks like a sin, and acts on each token alone or attends to earlier ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from broken_decoder import CONTEXT, HEAD_SIZE, HEADS, WIDTH, causal, sound
from torch import Tensor, nn


@sound("stream")
def mean_over_channels(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.mean(-1, keepdim=True) * h.amax(-1, keepdim=True)


@sound("stream")
def norms_over_heads(m: Any, h: Tensor, ids: Tensor) -> Any:
    parts = h.view(1, -1, HEADS, HEAD_SIZE)
    return h + (parts / (parts.pow(2).mean(2, keepdim=True) + 1).sqrt()).flatten(2)


@sound("stream")
def running_sum_over_channels(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.softmax(-1)


@sound("stream")
def a_long_loop_over_channels(m: Any, h: Tensor, ids: Tensor) -> Any:
    state = h[..., 0] * 0
    for channel in range(30):
        state = (0.5 * state + h[..., channel % WIDTH]).tanh()
    return h + state[..., None]


@sound("stream")
def features_of_the_position(m: Any, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(h.shape[1]).float()
    features = torch.stack([(place * 0.1).sin(), (place * 0.1).cos()], -1)
    return h + torch.cat([features] * (WIDTH // 2), -1)


@sound("stream")
def divided_by_the_position(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h / torch.arange(1, h.shape[1] + 1)[None, :, None]


@sound("stream")
def multiplied_by_content(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * (torch.arange(h.shape[1])[None] * ids)[..., None].float().sigmoid()


@sound("stream")
def padding_set_to_zero(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h.masked_fill((ids == 0)[..., None], 0.0)


@sound("stream")
def shift_by_padding(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + F.pad(h, (0, 0, 1, 0))[:, :-1]


@sound(
    "stream",
    first=lambda: nn.Conv1d(WIDTH, WIDTH, 2, groups=WIDTH),
    second=lambda: nn.Conv1d(WIDTH, WIDTH, 3, groups=4),
)
def two_convolutions_over_one_padding(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.second(m.first(F.pad(h.transpose(1, 2), (3, 0)))).transpose(1, 2)


@sound("stream", shifted=lambda: nn.Linear(WIDTH, WIDTH, bias=False))
def shift_of_a_projection(m: Any, h: Tensor, ids: Tensor) -> Any:
    before = m.shifted(h.new_zeros(1, 1, WIDTH))
    return h + torch.cat([before, m.shifted(h)[:, :-1]], 1)


@sound("stream", scale=lambda: nn.Parameter(torch.zeros(CONTEXT, WIDTH)))
def rows_of_a_table(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.scale[: h.shape[1]]


@sound("places")
def positions_from_two(m: Any, ids: Tensor) -> Any:
    return (torch.arange(ids.shape[1]) + 2).clamp(max=40)[None]


@sound("places")
def positions_counted_by_ones(m: Any, ids: Tensor) -> Any:
    return torch.ones_like(ids).cumsum(1) - 1


@sound("places")
def positions_that_skip_padding(m: Any, ids: Tensor) -> Any:
    return ((ids != 0).long().cumsum(1) - 1).clamp(min=0)


@sound("places")
def positions_that_start_anew_at_nothing(m: Any, ids: Tensor) -> Any:
    mask = (ids > 7).int()
    return (mask.cumsum(1).type_as(mask) * mask).long() + 3


@sound("stream")
def scaled_by_a_count_of_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    seen = torch.where(ids % 3 == 1, 1, 0).float().cumsum(1)
    return h / (1 + seen[..., None])


@sound("attend")
def attention_over_heads(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, y))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@sound("attend")
def causal_attention_over_heads(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, y))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7).transpose(1, 2)


@sound("attend")
def attention_over_heads_written_out(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, y))
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)


@sound("attend")
def queries_scaled_by_position(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    scale = torch.log(torch.arange(q.shape[2]) // 4 + 2.0)
    return F.scaled_dot_product_attention(q * scale[:, None], k, v, is_causal=True)


@sound("attend")
def linear_position_bias(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(q.shape[2])
    bias = (place[None] - place[:, None]) * torch.tensor([0.5, 0.25])[:, None, None]
    bias = bias.masked_fill(~causal(q.shape[2]), float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, bias)


@sound("attend")
def scores_multiplied_by_a_mask(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    ones = causal(q.shape[2]).float()
    scores = q @ k.transpose(-1, -2) * ones - 1e4 * (1 - ones)
    return scores.softmax(-1) @ v


@sound("attend")
def window_of_keys(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(q.shape[2])
    mask = causal(q.shape[2]) & (place[:, None] - place[None] < 5)
    return F.scaled_dot_product_attention(q, k, v, mask)


@sound("result")
def logits_normalized_over_the_vocabulary(m: Any, logits: Tensor) -> Any:
    return logits - logits.amax(-1, keepdim=True)
