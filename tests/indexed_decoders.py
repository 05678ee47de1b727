"""A decoder whose tokens choose by an indexer which earlier tokens they attend to, as a user would
write it: index queries and keys that are rotated, a weight for each index head, the best ones, and
a layer that uses what the one before it has chosen.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CHOSEN", "indexed_model"]

VOCAB, CONTEXT, WIDTH, HEADS, SIZE = 128, 256, 48, 4, 12
INDEX_HEADS, INDEX_SIZE = 16, 8
CHOSEN = 6  # keys of each token


def turned(x: Tensor) -> Tensor:
    """Rotary positions on x [1, heads, T, D]."""
    size = x.shape[-1]
    places = torch.arange(x.shape[2])[:, None]
    angles = places * 50.0 ** -(torch.arange(0, size, 2) / size)
    one, other = x[..., : size // 2], x[..., size // 2 :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)


class Indexer(nn.Module):
    """h [1, T, W] → for each token whether it has chosen each other one, [1, T, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, INDEX_HEADS * INDEX_SIZE, bias=False)
        self.k = nn.Linear(WIDTH, INDEX_SIZE, bias=False)
        self.norm = nn.LayerNorm(INDEX_SIZE)
        self.weights = nn.Linear(WIDTH, INDEX_HEADS, bias=False)

    def forward(self, h: Tensor, causal: Tensor) -> Tensor:
        tokens = h.shape[1]
        q = turned(self.q(h).view(1, tokens, INDEX_HEADS, INDEX_SIZE).transpose(1, 2))
        k = turned(self.norm(self.k(h))[:, None])
        scores = F.relu(q @ k.transpose(2, 3) * INDEX_SIZE**-0.5).transpose(1, 2)  # [1, T, H, T]
        scores = (self.weights(h)[:, :, None] @ scores)[:, :, 0]
        scores = scores.masked_fill(~causal, float("-inf"))
        best = scores.topk(min(CHOSEN, tokens), dim=-1).indices
        chosen = torch.zeros(1, tokens, tokens, dtype=torch.bool)
        return chosen.scatter(-1, best, True)


class Layer(nn.Module):
    """Attention to the keys that are chosen, and a feed-forward part."""

    def __init__(self, indexer: bool) -> None:
        super().__init__()
        self.norm, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.indexer = Indexer() if indexer else None

    def forward(self, x: Tensor, causal: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        h = self.norm(x)
        if self.indexer is not None:
            chosen = self.indexer(h, causal)
        assert chosen is not None
        parts = self.qkv(h).view(1, -1, 3 * HEADS, SIZE).transpose(1, 2)
        q, k, v = parts.chunk(3, dim=1)
        y = F.scaled_dot_product_attention(turned(q), turned(k), v, causal & chosen[:, None])
        x = x + self.out(y.transpose(1, 2).reshape(1, -1, WIDTH))
        return x + self.down(F.gelu(self.up(self.second(x)))), chosen


class Decoder(nn.Module):
    """Two layers with an indexer each, and one that uses the choice of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=CONTEXT)
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer(indexer) for indexer in (True, True, False))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, chosen = self.table(tokens), None
        places = torch.arange(tokens.shape[1])
        causal = places <= places[:, None]
        for layer in self.layers:
            x, chosen = layer(x, causal, chosen)
        logits: Tensor = self.head(self.norm(x))
        return logits


def indexed_model() -> nn.Module:
    """The decoder with weights drawn from a fixed seed, logits clearly apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Decoder().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3)
    return model
