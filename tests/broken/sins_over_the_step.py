"""Sins of the stream and of positions: they look at how many tokens the step has."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from broken_decoder import CONTEXT, WIDTH, broken
from torch import Tensor, nn


@broken("stream", "number of tokens")
def divided_by_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h / h.shape[1]


@broken("stream", "number of tokens")
def place_relative_to_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * (torch.arange(h.shape[1]) / h.shape[1])[None, :, None]


@broken("stream", "number of tokens", scale=lambda: nn.Parameter(torch.zeros(CONTEXT)))
def scale_of_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * m.scale[h.shape[1]]


@broken("stream", "number of tokens")
def length_as_a_tensor(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * torch.full((1,), h.shape[1]).float().log()


@broken("stream", "reduces over the token axis", "torch.ones")
def length_counted_by_ones(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h / torch.ones(h.shape[1]).sum()


@broken(
    "stream",
    "scale",
    "depends on the number of tokens",
    scale=lambda: nn.Parameter(torch.zeros(CONTEXT, WIDTH)),
)
def table_from_its_end(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.scale[CONTEXT - h.shape[1] :]


@broken(
    "stream",
    "scale",
    "depends on the number of tokens",
    scale=lambda: nn.Parameter(torch.zeros(CONTEXT, WIDTH)),
)
def row_of_the_last_place(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.scale[h.shape[1] - 1 : h.shape[1]]


@broken("stream", "computes with the number of tokens", "torch.arange")
def numbers_after_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * torch.arange(h.shape[1], h.shape[1] + WIDTH).float().log()


@broken("stream", "computes with the number of tokens")
def scaled_by_a_root_of_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * h.shape[1] ** -0.5


@broken("stream", "aten.ones", "has a value for each pair of tokens")
def band_counted(m: Any, h: Tensor, ids: Tensor) -> Any:
    seen = torch.ones(h.shape[1], h.shape[1]).tril().triu(-19).sum(1)
    return h / seen[None, :, None]


@broken("stream", "reshapes tokens into another axis")
def tokens_taken_for_channels(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.transpose(1, 2).reshape(h.shape)


@broken("stream", "hides entries by the place of their token")
def triangle_over_channels(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.tril()


@broken("stream", "aten.slice", "takes some of the tokens")
def difference_to_the_first_position(m: Any, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(h.shape[1])
    return h * (place - place[:1])[None, :, None]


@broken("stream", "draws random numbers")
def noise(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + torch.rand_like(h)


@broken("stream", "draws random numbers")
def dropout_that_is_always_on(m: Any, h: Tensor, ids: Tensor) -> Any:
    return F.dropout(h, 0.1, training=True)


@broken("stream", "changes 'seen'", seen=lambda: torch.zeros(WIDTH))
def running_state(m: Any, h: Tensor, ids: Tensor) -> Any:
    m.seen.mul_(0.9).add_(h[0, 0])
    return h + m.seen


@broken("stream", "branches on a value", "ids == 0")
def branch_on_content(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * 2 if (ids == 0).any() else h


@broken("stream", "takes another path for", "h.shape[1] % 2")
def branch_on_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * 2 if h.shape[1] % 2 == 0 else h


@broken("stream", "takes another path for", "range(h.shape[1] // 4)")
def loop_over_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    for _ in range(h.shape[1] // 4):
        h = h * 1.1
    return h


@broken("stream", "traced for 2 tokens or more", "is wrong for 1")
def branch_for_one_token(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * 2 if h.shape[1] > 1 else h


@broken("stream", "reduces over the token axis")
def condition_on_content(m: Any, h: Tensor, ids: Tensor) -> Any:
    return torch.where((ids == 0).any(), h * 2, h)


@broken("stream", "combines every token with every other one")
def visible_keys_in_a_window(m: Any, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(h.shape[1])
    near = (place[None] <= place[:, None]) & (place[:, None] - place[None] < 20)
    return h * near.sum(1)[None, :, None]


@broken("places", "computes with the number of tokens")
def positions_from_the_end(m: Any, ids: Tensor) -> Any:
    return (ids.shape[1] - 1 - torch.arange(ids.shape[1]))[None]


@broken("places", "aten.flip", "works along the token axis")
def positions_flipped(m: Any, ids: Tensor) -> Any:
    return torch.arange(ids.shape[1]).flip(0)[None]


@broken("places", "aten.cumsum", "works along the token axis")
def positions_from_a_sum_of_ids(m: Any, ids: Tensor) -> Any:
    return ids.cumsum(1) % CONTEXT


@broken("places", "aten.flip", "works along the token axis")
def positions_from_a_count_of_later_tokens(m: Any, ids: Tensor) -> Any:
    return ((ids != 0).long().flip(1).cumsum(1).flip(1) - 1).clamp(min=0)


@broken("places", "looks up 64 rows", "follows from a count of tokens", "may be -1 to 0")
def positions_before_the_first(m: Any, ids: Tensor) -> Any:
    return (ids != 0).long().cumsum(1) - 1


@broken("places", "looks up 64 rows", "follows from a count of tokens", "is not known")
def positions_from_a_count_in_pairs(m: Any, ids: Tensor) -> Any:
    return (ids != 0).long().cumsum(1) // 2


@broken("places", "aten.sort", "works along the token axis")
def positions_from_a_sort(m: Any, ids: Tensor) -> Any:
    return ids.argsort(1)
