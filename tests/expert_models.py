"""Blocks that loop over experts, each in another style, and a small decoder around them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["LOOPS", "Expert", "ExpertDecoder", "Loop"]


class Expert(nn.Module):
    """A gated feed-forward layer."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return y


class Loop(nn.Module):
    """A router and a list of experts; subclasses say how they loop."""

    def __init__(self, width: int = 32, experts: int = 4, chosen: int = 2) -> None:
        super().__init__()
        self.chosen, self.count = chosen, experts
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Expert(width, 48) for _ in range(experts))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.view(-1, hidden.shape[-1])
        return self.mix(x).view(hidden.shape)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class MaskOfEach(Loop):
    """index_add_ of what one row of a one-hot mask selects; normalised weights."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(functional.softmax(self.router(x), dim=1), self.chosen, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros(x.shape, dtype=x.dtype)
        mask = functional.one_hot(chosen, num_classes=self.count).permute(2, 1, 0)
        for number in range(self.count):
            slot, token = torch.where(mask[number])
            rows = x[None, token].reshape(-1, x.shape[-1])
            part = self.experts[number](rows) * weights[token, slot, None]
            y.index_add_(0, token, part.to(x.dtype))
        return y


class OnlyThoseHit(Loop):
    """Visits the experts that `nonzero` finds; sigmoid weights, one hidden behind a method."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(self.router(x).sigmoid(), self.chosen)
        return self.loop(x, weights, chosen)

    def loop(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        mask = functional.one_hot(chosen, self.count).permute(2, 1, 0)
        for number in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            number = number[0]
            slot, token = torch.where(mask[number])
            y.index_add_(0, token, self.experts[number](x[token]) * weights[token, slot, None])
        return y


class PlusEquals(Loop):
    """y[token] += … where a comparison selects."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        scores, chosen = torch.topk(self.router(x), self.chosen)
        weights = functional.softmax(scores, dim=1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            y[token] += weights[token, slot, None] * expert(x[token])
        return y


class FlatMask(Loop):
    """Boolean masks over repeated rows, summed up behind the loop."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(self.router(x).softmax(-1), self.chosen, sorted=False)
        flat, rows = chosen.view(-1), x.repeat_interleave(self.chosen, dim=0)
        y = torch.empty_like(rows)
        for number, expert in enumerate(self.experts):
            y[flat == number] = expert(rows[flat == number])
        return (y.view(*weights.shape, -1) * weights.unsqueeze(-1)).sum(1)


class OneExpert(Loop):
    """The best expert only; skips those without tokens."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token = torch.where(chosen == number)[0]
            if token.shape[0] > 0:
                y[token] = expert(x[token]) * weights[token, None]
        return y


class Matrices(Loop):
    """Experts as two tensors of matrices, beside a shared expert."""

    def __init__(self, width: int = 32, experts: int = 4, chosen: int = 2) -> None:
        super().__init__(width, experts, chosen)
        self.experts = Expert(width, 16)  # type: ignore[assignment]
        self.into = nn.Parameter(torch.randn(experts, 48, width) * width**-0.5)
        self.out = nn.Parameter(torch.randn(experts, 48, width) * 48**-0.5)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(self.chosen)
        y: torch.Tensor = self.experts(x)
        for number in range(self.count):
            mask = chosen == number
            if not mask.any():
                continue
            token, slot = mask.nonzero(as_tuple=True)
            inner = functional.gelu(functional.linear(x[token], self.into[number]))
            y = y.index_add(0, token, inner @ self.out[number] * weights[token, slot].unsqueeze(-1))
        return y


class Parts(nn.Module):
    """Experts as rows of two matrices [experts * inner, width]; given those of one, a product."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts * 24, width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts * 24, width) * 24**-0.5)

    def forward(self, x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return functional.silu(x.matmul(up.T)).matmul(down)


class TakenApart(Loop):
    """Weights that a module below holds, taken apart in each turn; a mask with one class more."""

    def __init__(self, width: int = 32, experts: int = 4, chosen: int = 2) -> None:
        super().__init__(width, experts, chosen)
        del self.experts
        self.parts = Parts(width, experts)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(self.chosen)
        weights = weights / torch.norm(weights, p=1, dim=-1, keepdim=True)
        mask = functional.one_hot(chosen, self.count + 1).permute(2, 1, 0)
        y = torch.zeros_like(x)
        for number in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            number = number[0]
            slot, token = torch.where(mask[number])
            up = self.parts.up.view(-1, 24, x.shape[1])[number]
            down = self.parts.down.view(-1, 24, x.shape[1])[number]
            part = self.parts(x[token], up, down).view(-1, x.shape[1])
            y.index_add_(0, token, part * weights[token, slot, None])
        return y


class PassedOn(Loop):
    """Beside experts with matrices two that return what they get; a weight has rows for all."""

    def __init__(self, width: int = 32, experts: int = 4, chosen: int = 3) -> None:
        super().__init__(width, experts + 2, chosen)
        del self.experts
        self.real = experts
        self.up = nn.Parameter(torch.randn(experts + 2, 24, width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, width, 24) * 24**-0.5)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(self.chosen)
        mask = functional.one_hot(chosen, self.count).permute(2, 1, 0)
        y = torch.zeros_like(x)
        for found in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero(as_tuple=False):
            number = int(found.item())
            slot, token = torch.where(mask[number].squeeze(0))
            if token.numel() == 0:
                continue
            part = x[token]
            if number < self.real:
                part = functional.silu(functional.linear(part, self.up[number]))
                part = functional.linear(part, self.down[number])
            y.index_add_(0, token, part * weights[token, slot, None])
        return y


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        z: torch.Tensor = self.out(y.transpose(1, 2).reshape(x.shape))
        return z


class Layer(nn.Module):
    def __init__(self, width: int, block: nn.Module) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention, self.block = Attention(width, 4), block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norms[0](x))
        y: torch.Tensor = x + self.block(self.norms[1](x))
        return y


class ExpertDecoder(nn.Module):
    """Two layers of attention and a block of experts; learned positions; 128 tokens."""

    def __init__(self, block: type[Loop], width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(128, width), nn.Embedding(256, width)
        self.layers = nn.ModuleList(Layer(width, block(width)) for _ in range(2))
        self.head = nn.Linear(width, 128, bias=False)
        self.eval()

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.tokens(idx) + self.places(torch.arange(idx.shape[1]))
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.head(x)
        return logits


LOOPS: tuple[type[Loop], ...] = (
    MaskOfEach, OnlyThoseHit, PlusEquals, FlatMask, OneExpert, Matrices, TakenApart, PassedOn,
)  # fmt: skip
