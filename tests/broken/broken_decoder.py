"""Small decoders with one sin each: every one looks at other tokens, or at its place in the step,
in a way that no cache can serve. And their near misses, which do not. `broken_models.py` has all.

A sin is a function that replaces one part of an otherwise plain decoder; the words beside it are
what the refusal must say first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "BROKEN", "CONTEXT", "HEADS", "HEAD_SIZE", "SOUND", "VOCAB", "WIDTH", "Case", "Decoder",
    "broken", "build", "causal", "sound",
]  # fmt: skip

VOCAB, WIDTH, HEADS, CONTEXT = 32, 16, 2, 64
HEAD_SIZE = WIDTH // HEADS


class Decoder(nn.Module):
    """Learned positions, one layer of causal attention and an MLP, a head. Parts may be replaced.

    places: (model, tokens [1, T]) → positions [1, T]. stream: (model, h [1, T, W], tokens) → h,
    after the attention. attend: (model, q, k, v [1, H, T, D], h, tokens) → [1, H, T, D].
    result: (model, logits [1, T, V]) → logits. layers: further modules, parameters and buffers.
    """

    def __init__(self, layers: Callable[[], dict[str, Any]] = dict, **parts: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=CONTEXT)
        self.parts = parts
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        for name, value in layers().items():
            if isinstance(value, nn.Parameter) or not isinstance(value, Tensor):
                setattr(self, name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, tokens: Tensor) -> Any:
        """Logits [1, T, V] of tokens [1, T]."""
        places = self._part("places", torch.arange(tokens.shape[1])[None], tokens)
        h = self.table(tokens) + self.places(places)
        q, k, v = (
            x.view(1, -1, HEADS, HEAD_SIZE).transpose(1, 2)
            for x in self.qkv(self.norm(h)).chunk(3, dim=-1)
        )
        if "attend" in self.parts:
            y = self.parts["attend"](self, q, k, v, h, tokens)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(y.transpose(1, 2).reshape(1, -1, WIDTH))
        h = self._part("stream", h, tokens)
        h = h + self.down(F.gelu(self.up(h)))
        return self._part("result", self.head(h))

    def _part(self, name: str, value: Any, *more: Any) -> Any:
        if name not in self.parts:
            return value
        if name == "places":
            return self.parts[name](self, *more)
        return self.parts[name](self, value, *more)


@dataclass
class Case:
    """What a decoder does instead of `part`, and what the first sentence of the refusal says."""

    part: str
    function: Callable[..., Any]
    words: tuple[str, ...] = ()
    layers: Callable[[], dict[str, Any]] = field(default=dict)


BROKEN: dict[str, Case] = {}
SOUND: dict[str, Case] = {}


def build(case: Case) -> Decoder:
    """The decoder of `case`, its weights drawn from a fixed seed, logits clearly apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Decoder(case.layers, **{case.part: case.function}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.4)
    return model


def broken(part: str, *words: str, **layers: Callable[[], Any]) -> Callable[..., Any]:
    """Registers a sin: the part it stands for, what the refusal says, the layers it needs."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        BROKEN[function.__name__] = Case(
            part, function, words, lambda: {name: make() for name, make in layers.items()}
        )
        return function

    return register


def sound(part: str, **layers: Callable[[], Any]) -> Callable[..., Any]:
    """Registers a near miss: what looks like a sin and acts on each token alone."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        SOUND[function.__name__] = Case(
            part, function, (), lambda: {name: make() for name, make in layers.items()}
        )
        return function

    return register


def causal(length: int) -> Any:
    place = torch.arange(length)
    return place[None] <= place[:, None]
