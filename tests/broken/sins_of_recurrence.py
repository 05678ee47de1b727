"""Sins of the stream: a state that is computed from the state before."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from broken_decoder import WIDTH, broken
from torch import Tensor, nn


@broken(
    "stream",
    "is recurrent",
    "m.rnn(h)",
    rnn=lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
)
def gated_recurrence(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.rnn(h)[0]


@broken(
    "stream",
    "is recurrent",
    "m.rnn(h)",
    rnn=lambda: nn.RNN(WIDTH, WIDTH, batch_first=True),
)
def plain_recurrence(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.rnn(h)[0]


@broken("stream", "is recurrent", "state = 0.9 * state")
def state_for_each_token(m: Any, h: Tensor, ids: Tensor) -> Any:
    state, states = h[:, 0] * 0, []
    for place in range(h.shape[1]):
        state = 0.9 * state + h[:, place]
        states.append(state)
    return h + torch.stack(states, 1)


@broken("stream", "is recurrent", "computes a state", "y[:, block] = y[:, block] + state")
def state_written_block_by_block(m: Any, h: Tensor, ids: Tensor) -> Any:
    length, size = h.shape[1], 8
    y = F.pad(h, (0, 0, 0, (size - length % size) % size)).reshape(1, -1, size, WIDTH).clone()
    state = h[0, 0] * 0
    for block in range(-(-length // size)):
        y[:, block] = y[:, block] + state
        state = y[0, block].sum(0)
    return y.reshape(1, -1, WIDTH)[:, :length]


@broken("stream", "is recurrent", "state = state + part.transpose")
def state_behind_an_unrolled_block(m: Any, h: Tensor, ids: Tensor) -> Any:
    """Blocks are longer than the example, which only sees the loop inside of the first one."""
    size = 16
    blocks = F.pad(h, (0, 0, 0, (size - h.shape[1] % size) % size)).reshape(-1, size, WIDTH)
    for row in range(1, size):
        blocks[:, row] = blocks[:, row] + blocks[:, row - 1].sigmoid()
    state, parts = torch.eye(WIDTH), []
    for part in blocks:
        parts.append(part @ state)
        state = state + part.transpose(0, 1) @ parts[-1]
    return torch.cat(parts)[None, : h.shape[1]]
