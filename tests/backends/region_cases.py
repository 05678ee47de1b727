"""Regions to generate code for: functions of activations and weights, traced to graphs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

__all__ = ["NUMBERS", "REDUCTIONS", "SHAPES", "TRACED", "positions", "rows", "trace"]

aten = torch.ops.aten
TRACED = 29  # rows while tracing: a size that no other axis of the cases has
Make = Callable[[int], torch.Tensor]
Cases = dict[str, tuple[Any, ...]]


def rows(*shape: int, before: int = 0) -> Make:
    """Random activations [1] * before + [T, *shape]."""
    return lambda count: torch.randn(*[1] * before, count, *shape)


def positions(before: int = 0, high: int = 5000) -> Make:
    return lambda count: torch.randint(0, high, (*[1] * before, count))


def trace(function: Callable[..., Any], inputs: list[Any]) -> fx.GraphModule:
    """The graph of `function`: callables among the inputs make activations, tensors are weights."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fakes = []
    for each in inputs:
        value = each if isinstance(each, torch.Tensor) else each(TRACED)
        sizes = [] if isinstance(each, torch.Tensor) else [TRACED]
        dynamic = [DimDynamic.DUCK if n in sizes else DimDynamic.STATIC for n in value.shape]
        context: Any = StatelessSymbolicContext(dynamic_sizes=dynamic)
        fakes.append(mode.from_tensor(value, symbolic_context=context))
    module: fx.GraphModule = make_fx(function)(*fakes)
    for node in module.graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rope_heads_first(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    x = x.reshape(1, -1, 4, 16).permute(0, 2, 1, 3)
    turned = x * cos.unsqueeze(1) + rotate_half(x) * sin.unsqueeze(1)
    return turned.permute(0, 2, 1, 3).reshape(1, -1, 64)


def partial_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    x = x.reshape(1, -1, 2, 24)
    turned, rest = x[..., :16], x[..., 16:]
    turned = turned * cos.unsqueeze(2) + rotate_half(turned) * sin.unsqueeze(2)
    return torch.cat((turned, rest), dim=-1)


def interleaved_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    pairs = x.reshape(-1, 2, 8, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    c, s = cos[:, None, :8], sin[:, None, :8]
    return torch.stack((even * c - odd * s, odd * c + even * s), dim=-1).flatten(-2)


def neox_qkv(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.reshape(1, -1, 4, 3 * 8).transpose(1, 2)
    q, k, v = x[..., :8], x[..., 8:16], x[..., 16:]
    q, k = q * 0.5, torch.cat((-k[..., 4:], k[..., :4]), dim=-1)
    return tuple(each.transpose(1, 2) + 1.0 for each in (q, k, v))


def rope_tables(position: torch.Tensor, frequency: torch.Tensor) -> tuple[Any, Any]:
    angle = position[:, :, None].float() * frequency[None, None, :]
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos() * 1.5, angle.sin()


SHAPES: Cases = {
    "rope with heads in front": (
        rope_heads_first,
        rows(64, before=1),
        rows(16, before=1),
        rows(16, before=1),
    ),
    "partial rope": (partial_rope, rows(48, before=1), rows(16, before=1), rows(16, before=1)),
    "interleaved rope": (interleaved_rope, rows(32), rows(16), rows(16)),
    "qkv in one row, per head": (neox_qkv, rows(96, before=1)),
    "rope tables": (rope_tables, positions(1), 10000 ** -(torch.arange(16) / 16)),
    "slices of both axes": (lambda x: x.reshape(-1, 6, 10)[:, 1:5, 2:7] * 2, rows(60)),
    "strided slice": (lambda x: x[:, 1::3] + 1, rows(20)),
    "permute inside the row": (lambda x: x.permute(0, 2, 1).reshape(-1, 12) * 2, rows(3, 4)),
    "repeat of key heads": (
        lambda x: x[:, :, None, :].expand(-1, 2, 3, 8).reshape(-1, 6, 8) + 0.0,
        rows(2, 8),
    ),
    "flip and repeat": (lambda x: x.flip(-1).repeat(1, 3) + 0.0, rows(7)),
    "stack of heads": (lambda x, y: torch.stack((x, y), dim=1), rows(12), rows(12)),
    "cat of heads and a weight": (
        lambda x, w: torch.cat((x, w.expand(x.shape[0], 2, 9), x), dim=1),
        rows(3, 9),
        torch.randn(1, 2, 9),
    ),
    "cat in three parts": (
        lambda x, y, z: torch.cat((x, y, z), -1) * 2,
        rows(5),
        rows(40),
        rows(700),
    ),
    "squeezes": (lambda x: x.unsqueeze(1).squeeze(1).select(1, 2).unsqueeze(-1) * 3, rows(4, 6)),
    "rows of heads": (lambda x: x.reshape(-1, 8).reshape(-1, 3, 8) * 2, rows(24)),
}

NUMBERS: Cases = {
    "logit softcap": (lambda x: torch.tanh(x / 30.0) * 30.0, rows(1500)),
    "positions": (lambda p: p + 2, positions(1)),
    "integer arithmetic": (
        lambda p, q: (
            (p - 2500) // 7,
            (p - 2500) % 7,
            torch.remainder(p - 9, -5),
            p * q,
            -p,
            p / 7,
        ),
        positions(),
        positions(high=9),
    ),
    "comparisons": (
        lambda x, p: (x > 0.5, (p < 100) & (x[:, 0] != 0), ~(p >= 2500), (p == 3) | (p > 4000)),
        rows(5),
        positions(),
    ),
    "masks": (
        lambda x, p: (torch.where(x > 0, x, -x), x.masked_fill((p > 2500)[:, None], -math.inf)),
        rows(9),
        positions(),
    ),
    "activations": (
        lambda x: (
            F.silu(x),
            F.gelu(x),
            F.gelu(x, approximate="tanh"),
            F.relu(x),
            F.sigmoid(x),
            F.softplus(x),
            F.leaky_relu(x, 0.2),
            F.elu(x),
            F.hardtanh(x),
            F.mish(x),
            F.relu6(x),
        ),
        rows(33),
    ),
    "functions": (
        lambda x: (
            x.exp(),
            x.expm1(),
            x.exp2(),
            x.abs().log(),
            x.abs().log10(),
            x.abs().sqrt(),
            x.abs().rsqrt(),
            x.erf(),
            x.sin(),
            x.cos(),
            x.floor(),
            x.ceil(),
            x.round(),
            x.trunc(),
            x.sign(),
            x.reciprocal(),
            x.square(),
            x.abs().log1p(),
            x.abs().log2(),
            torch.log(x.abs() + 1),
            x**3,
            x.abs() ** 0.3,
            2.0**x,
            1.0 - x,
            x.clamp(-0.5, 0.5),
            x.clamp_min(0.1),
            x.clamp_max(0.1),
        ),
        rows(17),
    ),
    "two operands": (
        lambda x, y: (
            x + 2 * y,
            torch.maximum(x, y),
            torch.minimum(x, y),
            torch.addcmul(x, y, y, value=0.5),
            x - y,
            torch.sub(x, y, alpha=3),
            x / (y.abs() + 1),
            torch.fmod(x, 0.3),
            x * y,
        ),
        rows(21),
        rows(21),
    ),
    "casts": (
        lambda x, p: (
            x.long(),
            (x > 0).float(),
            p.float() * 0.5,
            (p % 2).bool(),
            p.int(),
            x.double().float(),
        ),
        rows(6),
        positions(),
    ),
    "scaled embedding": (
        lambda p, w: F.embedding(p, w) * 4.0,
        positions(1, 37),
        torch.randn(37, 24),
    ),
    "gathers": (
        lambda p, w: (w[p - 5] + 1, torch.index_select(w, 0, p[:, 0]) * 2),
        lambda count: torch.randint(0, 12, (count, 3)),
        torch.randn(12, 10),
    ),
    "gathers inside the row": (
        lambda x, p, one, two: (
            torch.index_select(x * 2, 1, one),
            torch.gather(x, 1, p % 6),
            torch.index_select(x, -1, one),
            torch.gather(x, -1, p % 6),
            x[:, two],
        ),
        rows(6),
        lambda count: torch.randint(0, 5000, (count, 3)),
        torch.tensor([3, 0, 3, 5]),
        torch.tensor([[1, -1], [0, 2]]),
    ),
    "alibi-like bias": (lambda p, w: p[:, None].float() * w, positions(), torch.randn(8)),
    "a shared subexpression": (lambda x: _doubled(x, 40), rows(10)),
}


def _doubled(x: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        x = x * 0.5 + x * 0.25
    return x


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def standardized(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()


REDUCTIONS: Cases = {
    "rms norm of heads": (rms, rows(3, 16), torch.randn(16)),
    "layer norm": (standardized, rows(1000)),
    "reductions": (
        lambda x: (
            x.mean(-1),
            x.sum(-1, keepdim=True),
            x.amax(-1),
            x.amin(-1),
            x.var(-1),
            x.norm(dim=-1),
            x.sum((1, 2)),
            (x > 0).sum(-1),
        ),
        rows(4, 37),
    ),
    "softmax": (lambda x: (F.softmax(x * 3, dim=-1), F.softmax(x, dim=-1).sum(-1)), rows(2, 40)),
    "softmax over heads": (lambda x: F.softmax(x, dim=1), rows(5, 3)),
    "a reduction of a reduction": (
        lambda x: (x / x.abs().sum(-1, keepdim=True)).mean(1),
        rows(6, 33),
    ),
    "a reduction of a concatenation": (
        lambda x, y: torch.cat((x, y * 2), -1).mean(-1),
        rows(20),
        rows(33),
    ),
    "a reduction inside the loop": (lambda x: x.reshape(-1, 4, 12).mean(1) * 2, rows(48)),
}
