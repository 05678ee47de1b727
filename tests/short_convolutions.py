"""Decoders whose layers look back a few tokens: gated short convolutions, dense ones, token shifts.

Written as a user would: plain modules of token ids alone, without positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Decoder", "GatedConv", "SelfAttention", "TokenShift", "decoder"]

WIDTH, VOCAB = 48, 128


class GatedConv(nn.Module):
    """out(c * conv(b * u)) with b, c, u from one projection, and a convolution along the tokens.

    pad, cut: what stands in front of the convolution and behind it; `options` are nn.Conv1d's.
    """

    def __init__(
        self,
        taps: int,
        *,
        pad: Callable[[Tensor], Tensor] = lambda x: x,
        cut: Callable[[Tensor, int], Tensor] = lambda x, tokens: x[..., :tokens],
        **options: int | str,
    ) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 3 * WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, taps, **options)  # type: ignore[arg-type]
        self.outer = nn.Linear(WIDTH, WIDTH)
        self.pad, self.cut = pad, cut

    def forward(self, x: Tensor) -> Tensor:
        b, c, u = self.inner(x).transpose(1, 2).chunk(3, dim=1)
        y: Tensor = self.cut(self.conv(self.pad(b * u)), x.shape[1])
        result: Tensor = self.outer((c * y).transpose(1, 2))
        return result


class TokenShift(nn.Module):
    """A gated feed-forward layer over mixtures of each token with the one before it."""

    def __init__(self, shift: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix_key, self.mix_gate = (nn.Parameter(torch.rand(WIDTH)) for _ in range(2))
        self.key = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.value = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, WIDTH, bias=False)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        change = self.shift(x) - x
        key = torch.relu(self.key(x + change * self.mix_key)) ** 2
        gate = torch.sigmoid(self.gate(x + change * self.mix_gate))
        result: Tensor = gate * self.value(key)
        return result


class SelfAttention(nn.Module):
    """Causal attention of four heads without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (4, WIDTH // 4)).transpose(1, 2)
            for part in self.inner(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.outer(y.transpose(1, 2).flatten(2))
        return result


class Decoder(nn.Module):
    """x + layer(norm(x)) for each layer, between an embedding and a head: logits [1, T, VOCAB]."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-6) for _ in layers)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        logits: Tensor = self.head(x)
        return logits


def decoder(*layers: Callable[[], nn.Module]) -> Decoder:
    """A decoder of these layers in eval mode, with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder([layer() for layer in layers]).eval()
