"""Short causal convolutions along tokens: stateless, and with a rolling state per sequence."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from graphwright.ir.op import Sample, declare

__all__ = ["causal_conv", "conv_along_tokens"]


def _meta(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _weights(channels: int, multiplier: int, taps: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(channels * multiplier, taps), torch.randn(channels * multiplier)


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for name, tokens, channels, multiplier, taps, biased in (
        ("prefill", 9, 6, 1, 3, True),
        ("shorter-than-the-kernel", 2, 5, 1, 4, False),
        ("two-outputs-a-channel", 7, 3, 2, 2, True),
    ):
        weight, bias = _weights(channels, multiplier, taps)
        yield Sample((torch.randn(tokens, channels), weight, bias if biased else None), {}, name)


@declare(
    "conv_along_tokens(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    meta=_meta,
    samples=_samples,
)
def conv_along_tokens(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """A causal convolution of each channel over the tokens of one sequence, from its first on.

    x [T, C], weight [M * C, L], bias [M * C]: y[t, o] = Σ_j weight[o, j] * x[t - (L-1) + j, o // M]
    + bias[o], rows before the first being zero. Returns [T, M * C].
    """
    return _convolve(x.new_zeros(weight.shape[1] - 1, x.shape[1]), x, weight, bias)


def _cached_samples() -> Iterator[Sample]:
    torch.manual_seed(1)
    table = torch.tensor([[3, 1], [2, 5], [7, 6], [4, 0]], dtype=torch.int32)
    # Sequence 0 decodes its 10th token, 1 starts with 4, 2 adds 2 to its 3, 3 decodes its 2nd.
    positions = torch.tensor([9, 0, 1, 2, 3, 3, 4, 1])
    start = torch.tensor([0, 1, 5, 7, 8], dtype=torch.int32)
    for name, channels, multiplier, taps, biased in (
        ("ragged", 6, 1, 3, True),
        ("chunks-shorter-than-the-kernel", 4, 1, 5, False),
        ("token-shift", 8, 1, 2, False),
        ("two-outputs-a-channel", 3, 2, 4, True),
    ):
        weight, bias = _weights(channels, multiplier, taps)
        x, state = torch.randn(len(positions), channels), torch.randn(9, taps - 1, channels)
        extra = bias if biased else None
        yield Sample((x, weight, extra, state, positions, start, table), {}, name)


@declare(
    "causal_conv(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) state, Tensor positions, "
    "Tensor query_start, Tensor block_table) -> Tensor",
    meta=_meta,
    samples=_cached_samples,
)
def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    positions: torch.Tensor,
    query_start: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """gw.conv_along_tokens over a ragged batch whose sequences go on from earlier steps.

    x [T, C], weight [M * C, L], bias [M * C]; positions, query_start and block_table as in
    gw.cached_attention. state [blocks, L-1, C] is modified: row block_table[b, 0] holds the inputs
    of sequence b at the L-1 positions before its next one, oldest first. What it held before the
    sequence's position 0 is not read. Returns [T, M * C].
    """
    result = x.new_empty((x.shape[0], weight.shape[0]))
    kept = state.shape[1]
    for b, (begin, end) in enumerate(pairwise(query_start.tolist())):
        if begin == end:
            continue
        row = int(block_table[b, 0])
        known = min(int(positions[begin]), kept)
        past = x.new_zeros(kept, x.shape[1])
        past[kept - known :] = state[row, kept - known :].to(x.dtype)
        result[begin:end] = _convolve(past, x[begin:end], weight, bias)
        state[row] = torch.cat([past, x[begin:end]])[end - begin :].to(state.dtype)
    return result


def _convolve(
    past: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The convolution of x [T, C] behind the L-1 rows of `past`."""
    outputs, taps = weight.shape
    rows = torch.cat([past, x]).float()
    rows = rows.repeat_interleave(outputs // rows.shape[1], dim=1)
    total = torch.zeros(x.shape[0], outputs)
    for j in range(taps):
        total = total + rows[j : j + x.shape[0]] * weight[:, j].float()
    if bias is not None:
        total = total + bias.float()
    return total.to(x.dtype)
