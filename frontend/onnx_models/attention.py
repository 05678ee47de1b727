"""Attention and rotary embedding, where the graph has them as one node: without any past."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from graphwright.frontend.onnx_models.registry import MICROSOFT, operator
from graphwright.frontend.onnx_models.values import Call, Value

__all__: list[str] = []


@dataclass(frozen=True)
class _Rule:
    """What scores go through. behind, ahead: how many positions a query sees there, -1 for all.
    sinks: a logit for each head.
    """

    scale: float
    causal: bool = False
    behind: int = -1
    ahead: int = -1
    softcap: float = 0.0
    mask: torch.Tensor | None = None
    sinks: torch.Tensor | None = None


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: _Rule) -> torch.Tensor:
    """q [B, H, S, D], k and v [B, Hkv, S, ·]; float or bool mask, as for torch's."""
    if not rule.softcap and rule.sinks is None:
        if rule.mask is None and rule.behind < 0 and rule.ahead < 0:
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=rule.causal, scale=rule.scale, enable_gqa=True
            )
        mask = _mask(rule, q, k)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=rule.scale, enable_gqa=True
        )
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    scores = torch.matmul(q, k.mT) * rule.scale
    if rule.softcap:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    mask = _mask(rule, q, k)
    if mask is not None:
        allowed = mask.dtype is torch.bool
        scores = scores.masked_fill(~mask, -math.inf) if allowed else scores + mask
    if rule.sinks is not None:
        sinks = rule.sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], 1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
        return torch.matmul(torch.softmax(scores, -1)[..., :-1], v)
    return torch.matmul(torch.softmax(scores, -1), v)


def _mask(rule: _Rule, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor | None:
    mask = rule.mask
    row, column = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None, :]
    ahead = 0 if rule.causal else rule.ahead
    if ahead >= 0:
        mask = _both(mask, column <= row + ahead, q.dtype)
    if rule.behind >= 0:
        mask = _both(mask, column >= row - rule.behind, q.dtype)
    return mask


def _both(mask: torch.Tensor | None, seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask is None:
        return seen
    if mask.dtype is torch.bool:
        return mask & seen
    return mask + torch.where(seen, 0.0, -math.inf).to(dtype)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, S, heads * D] -> [B, heads, S, D]"""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[B, heads, S, D] -> [B, S, heads * D]"""
    return x.transpose(1, 2).flatten(2)


def _turned(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """x [B, H, S, D] with its first channels rotated; cos and sin [B or 1, S, half of them]."""
    rotary = 2 * cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turns, rest = x[..., :rotary], x[..., rotary:]
    if interleaved:
        first, second = turns[..., 0::2], turns[..., 1::2]
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], -1)
        turned = turned.flatten(-2)
    else:
        first, second = turns[..., : rotary // 2], turns[..., rotary // 2 :]
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return turned if x.shape[-1] == rotary else torch.cat([turned, rest], -1)


def _angles(call: Call, places: tuple[int, int], positions: torch.Tensor | None, length: Any,
            rotary: int) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """cos and sin [B or 1, S, half]: rows of the caches at `positions`, or the first ones."""
    cos, sin = call.tensor(places[0]), call.tensor(places[1])
    if cos.dim() == 2:
        if positions is None:
            positions = torch.arange(length)[None, :]
        positions = positions.to(torch.int64)
        cos, sin = F.embedding(positions, cos), F.embedding(positions, sin)
    half = rotary // 2 if rotary else cos.shape[-1]
    return cos[..., :half], sin[..., :half]


@operator("RotaryEmbedding", domain=MICROSOFT)
def _rotary_microsoft(call: Call) -> Value:
    positions = call.tensor(1)
    if positions.numel() == 1:
        x = call.tensor(0)
        length = x.shape[-2]
        positions = positions.reshape(1, 1) + torch.arange(length)[None, :]
    return _rotary(call, (2, 3), positions)


@operator("RotaryEmbedding")
def _rotary_onnx(call: Call) -> Value:
    return _rotary(call, (1, 2), call.optional(3))


def _rotary(call: Call, places: tuple[int, int], positions: torch.Tensor | None) -> Value:
    x, rotary = call.tensor(0), call.attribute("rotary_embedding_dim", 0)
    if flat := x.dim() == 3:
        heads = call.attribute("num_heads", 0)
        if not heads:
            heads = x.shape[-1] // (2 * call.tensor(places[0]).shape[-1])
        x = _heads(x, heads)
    cos, sin = _angles(call, places, positions, x.shape[2], rotary)
    turned = _turned(x, cos, sin, bool(call.attribute("interleaved", 0)))
    return _rows(turned) if flat else turned


def _without_past(call: Call, *places: int) -> None:
    for place in places:
        if call.has(place) and call.tensor(place).shape[-2] != 0:
            raise call.error("has keys of the past; a graph is traced without")


@operator("Attention")
def _attention(call: Call) -> tuple[Value, ...]:
    """Of opset 23 to 25."""
    q, k, v = (call.tensor(place) for place in range(3))
    if flat := q.dim() == 3:
        q = _heads(q, call.attribute("q_num_heads"))
        k, v = (_heads(each, call.attribute("kv_num_heads")) for each in (k, v))
    _without_past(call, 4, 5)
    if call.attribute("qk_matmul_output_mode", 0) or call.outputs > 3:
        raise call.error("gives its scores, which is not supported")
    if call.has(6):
        raise call.error("has lengths without padding, which is not supported")
    rule = _Rule(
        call.attribute("scale") or q.shape[-1] ** -0.5, bool(call.attribute("is_causal", 0)),
        call.attribute("left_window_size", -1), call.attribute("right_window_size", -1),
        call.attribute("softcap", 0.0), call.optional(3),
    )  # fmt: skip
    found = _attend(q, k, v, rule)
    return (_rows(found) if flat else found, k, v)[: call.outputs]


@operator("GroupQueryAttention", domain=MICROSOFT)
def _grouped(call: Call) -> tuple[Value, ...]:
    """Causal; packed or not, with rotary embedding or not."""
    heads, kv_heads = int(call.attribute("num_heads")), int(call.attribute("kv_num_heads"))
    _without_past(call, 3, 4)
    q = call.tensor(0)
    if call.has(1):
        q, k, v = (
            _heads(q, heads),
            _heads(call.tensor(1), kv_heads),
            _heads(call.tensor(2), kv_heads),
        )
    else:
        q, k, v = _heads(q, heads + 2 * kv_heads).split([heads, kv_heads, kv_heads], dim=1)
    if call.attribute("do_rotary", 0):
        cos, sin = _angles(call, (7, 8), call.optional(9), q.shape[2], 0)
        interleaved = bool(call.attribute("rotary_interleaved", 0))
        q, k = (_turned(each, cos, sin, interleaved) for each in (q, k))
    window = call.attribute("local_window_size", -1)  # the query itself is one of them
    sinks = call.optional(11)
    if call.attribute("smooth_softmax", 0) and sinks is None:
        sinks = torch.zeros(heads)
    rule = _Rule(
        call.attribute("scale") or q.shape[-1] ** -0.5, True, window - 1 if window > 0 else -1, -1,
        call.attribute("softcap", 0.0), call.optional(10), sinks,
    )  # fmt: skip
    return (_rows(_attend(q, k, v, rule)), k, v)[: call.outputs]


@operator("MultiHeadAttention", domain=MICROSOFT)
def _multi_head(call: Call) -> tuple[Value, ...]:
    heads = int(call.attribute("num_heads"))
    _without_past(call, 6, 7)
    if not call.has(1) or call.tensor(1).dim() != 3:
        raise call.error("has packed queries and keys, which is not supported")
    if call.has(4):
        raise call.error("has a mask of padding, which is not supported")
    q, k, v = (call.tensor(place) for place in range(3))
    bias = call.optional(3)
    if bias is not None:
        parts = bias.split([q.shape[-1], k.shape[-1], v.shape[-1]])
        q, k, v = (each + part for each, part in zip((q, k, v), parts, strict=True))
    q, k, v = (_heads(each, heads) for each in (q, k, v))
    rule = _Rule(
        call.attribute("scale") or q.shape[-1] ** -0.5, bool(call.attribute("unidirectional", 0)),
        mask=call.optional(5),
    )  # fmt: skip
    return (_rows(_attend(q, k, v, rule)), k, v)[: call.outputs]


@operator("Attention", domain=MICROSOFT)
def _projected(call: Call) -> tuple[Value, ...]:
    """With its projection: weight [inputs, queries + keys + values] and bias."""
    heads = int(call.attribute("num_heads"))
    _without_past(call, 4)
    if call.attribute("do_rotary", 0):
        raise call.error("rotates its queries, which is not supported")
    mixed = torch.matmul(call.tensor(0), call.tensor(1))
    if call.has(2):
        mixed = mixed + call.tensor(2)
    width = mixed.shape[-1] // 3
    q, k, v = mixed.split(call.attribute("qkv_hidden_sizes") or [width] * 3, -1)
    q, k, v = (_heads(each, heads) for each in (q, k, v))
    mask = call.optional(5)
    if call.has(3):
        seen = call.tensor(3)
        if seen.dim() != 2:
            raise call.error(f"has a mask of {seen.dim()} axes, which is not supported")
        mask = _both(mask, (seen != 0)[:, None, None, :], q.dtype)
    rule = _Rule(
        call.attribute("scale") or q.shape[-1] ** -0.5, bool(call.attribute("unidirectional", 0)),
        mask=mask,
    )  # fmt: skip
    return (_rows(_attend(q, k, v, rule)), torch.stack([k, v]))[: call.outputs]
