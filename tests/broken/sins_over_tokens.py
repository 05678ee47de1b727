"""Sins of the stream: it looks at other tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from broken_decoder import CONTEXT, WIDTH, broken
from torch import Tensor, nn


@broken("stream", "aten.mean.dim", "reduces over the token axis")
def mean_over_the_sequence(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.mean(1, keepdim=True)


@broken("stream", "aten.amax", "reduces over the token axis")
def max_over_the_sequence(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.amax(1, keepdim=True)


@broken("stream", "amax", "reduces over the token axis")
def max_with_its_place_over_the_sequence(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.max(1, keepdim=True).values


@broken("stream", "aten.cumsum", "works along the token axis")
def running_sum(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.cumsum(1)


@broken("stream", "aten.cummax", "works along the token axis")
def running_maximum(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.cummax(1).values


@broken("stream", "batch_norm", "takes its statistics from the token axis")
def batch_norm_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + F.batch_norm(h[0], None, None, training=True)[None]


@broken("stream", "group_norm", "normalizes over the token axis")
def group_norm_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + F.group_norm(h.transpose(1, 2), 4).transpose(1, 2)


@broken("stream", "instance_norm", "takes its statistics from the token axis")
def instance_norm_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + F.instance_norm(h.transpose(1, 2)).transpose(1, 2)


@broken("stream", "aten.layer_norm", "normalizes over the token axis")
def layer_norm_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + F.layer_norm(h.transpose(1, 2), (h.shape[1],)).transpose(1, 2)


@broken("stream", "aten.var", "reduces over the token axis")
def variance_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h / (h.var(1, keepdim=True) + 1)


@broken("stream", "aten.linalg_vector_norm", "reduces over the token axis")
def norm_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return F.normalize(h, dim=1)


@broken("stream", "aten.softmax", "works along the token axis")
def softmax_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.softmax(1)


@broken("stream", "aten.slice", "takes some of the tokens")
def first_token_added_to_all(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h[:, :1]


@broken("stream", "aten.select", "takes one of the tokens")
def last_token_added_to_all(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h[:, -1].unsqueeze(1)


@broken("stream", "aten.slice", "takes some of the tokens")
def first_token_expanded(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * h[:, :1].expand(1, h.shape[1], WIDTH).sigmoid()


@broken("stream", "h.roll(1, 1)", "computes with the number of tokens")
def roll_of_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.roll(1, 1)


@broken("stream", "aten.slice", "takes some of the tokens")
def shift_by_cat(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + torch.cat([h[:, :1], h[:, :-1]], 1)


@broken("stream", "aten.flip", "works along the token axis")
def flip_of_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.flip(1)


@broken("stream", "aten.sort", "works along the token axis")
def sort_of_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.sort(1).values


@broken("stream", "aten.topk", "works along the token axis")
def best_token(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.topk(1, dim=1).values


@broken("stream", "conv1d", "not causal", conv=lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1))
def convolution_that_sees_the_next_token(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.conv(h.transpose(1, 2)).transpose(1, 2)


@broken(
    "stream", "conv1d", "has stride 2",
    conv=lambda: nn.Conv1d(WIDTH, WIDTH, 2, stride=2, padding=1),
)  # fmt: skip
def convolution_with_a_stride(m: Any, h: Tensor, ids: Tensor) -> Any:
    y = m.conv(h.transpose(1, 2)).transpose(1, 2)
    return h + y.mean(1, keepdim=True)


@broken(
    "stream", "conv1d", "uses all T + 2 elements",
    first=lambda: nn.Conv1d(WIDTH, WIDTH, 2, groups=WIDTH),
    second=lambda: nn.Conv1d(WIDTH, WIDTH, 3),
)  # fmt: skip
def convolutions_over_one_padding_and_a_bias_between(m: Any, h: Tensor, ids: Tensor) -> Any:
    y = F.gelu(m.first(F.pad(h.transpose(1, 2), (3, 0))))
    return h + m.second(y).transpose(1, 2)


@broken("stream", "aten.slice", "takes some of the tokens", shifted=lambda: nn.Linear(WIDTH, WIDTH))
def shift_of_a_projection_with_a_bias(m: Any, h: Tensor, ids: Tensor) -> Any:
    before = m.shifted(h.new_zeros(1, 1, WIDTH))
    return h + torch.cat([before, m.shifted(h)[:, :-1]], 1)


@broken("stream", "aten._fft", "works along the token axis")
def fourier_mixing(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + torch.fft.fft(h, dim=1).real


@broken(
    "stream",
    "mixer",
    "depends on the number of tokens",
    mixer=lambda: nn.Parameter(torch.zeros(CONTEXT, CONTEXT)),
)
def learned_matrix_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    length = h.shape[1]
    return h + torch.einsum("btd,ts->bsd", h, m.mixer[:length, :length])


@broken("stream", "contracts the token axis")
def product_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h @ (h.transpose(1, 2) @ h)


@broken("stream", "aten.gather", "chooses among the tokens")
def gather_of_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.gather(1, (ids % 2)[..., None].expand_as(h))


@broken("stream", "aten.index", "chooses among the tokens")
def tokens_looked_up_by_id(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h[0][ids[0] % 2][None]
