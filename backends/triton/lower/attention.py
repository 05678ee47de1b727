"""gw.cached_attention: append to the paged cache, then attend over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.backends.triton.context import LoweringContext, arguments
from graphwright.backends.triton.kernels.attention_decode import (
    combine_splits,
    decode_attention,
    default_splits,
)
from graphwright.backends.triton.kernels.attention_prefill import prefill_attention
from graphwright.backends.triton.kernels.attention_tile import AttentionShape
from graphwright.backends.triton.kernels.rope import append_kv
from graphwright.backends.triton.kernels.token_slots import token_slots
from graphwright.backends.triton.kv_layout import BLOCK_SIZE
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.registry import lowering
from graphwright.ir.masks import Mask

__all__ = ["cached_attention", "slots_of"]

gw = torch.ops.gw
BATCH = Operand("batch")


def slots_of(
    context: LoweringContext, node: fx.Node, given: dict[str, Any]
) -> tuple[Operand, Operand, tuple[Launch, ...]]:
    """(sequence of each token, its place in the cache, what computes both, once in a step)."""
    size = 4 * context.plan.max_tokens
    sequences, first = context.keep("sequences", size)
    slots, _ = context.keep("slots", size)
    if not first:
        return sequences, slots, ()
    kernel = context.kernel(token_slots, block_size=BLOCK_SIZE)
    operands = (
        BATCH, context.value(given["positions"]), context.value(given["query_start"]),
        Operand("block_table"), sequences, slots,
    )  # fmt: skip
    return sequences, slots, (Launch(node.name, kernel, operands),)


@lowering(gw.cached_attention.default)
def cached_attention(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """Decode splits the keys of each token over programs; prefill shares them among queries."""
    given = arguments(node)
    heads, dim = (int(size) for size in given["q"].meta["val"].shape[-2:])
    kv_heads = int(given["k_cache"].meta["val"].shape[2])
    value_dim = int(given["v_cache"].meta["val"].shape[3])
    dtype = context.dtype(given["q"])
    cache = context.kv.cache(str(given["k_cache"].target))
    stride = context.kv.stride(cache)
    states = ("k_cache", "v_cache", "k_scale", "v_scale")
    caches = [context.state(given[name]) for name in states if given[name] is not None]
    sequences, slots, found = slots_of(context, node, given)
    launches = [*found]
    if given["k"] is not None:
        kernel = context.kernel(
            append_kv, kv_heads, dim, value_dim, k_stride=context.view(given["k"]).row_stride,
            v_stride=context.view(given["v"]).row_stride, block_stride=stride,
            block_size=BLOCK_SIZE, dtype=dtype, cache=cache,
        )  # fmt: skip
        new = (context.value(given["k"]), context.value(given["v"]))
        launches.append(Launch(node.name, kernel, (BATCH, *new, slots, *caches)))
    shape = AttentionShape(
        heads, kv_heads, dim, value_dim, context.view(given["q"]).row_stride, stride,
        float(given["scale"]), Mask.parse(given["mask"]), float(given["softcap"]),
        given["slopes"] is not None, given["sinks"] is not None, BLOCK_SIZE, dtype, cache,
    )  # fmt: skip
    slopes, sinks = (
        () if given[name] is None else (context.weight(given[name]),)
        for name in ("slopes", "sinks")
    )
    head = (BATCH, context.value(given["q"]), *caches, *slopes)
    positions, table = context.value(given["positions"]), Operand("block_table")
    if context.plan.entry != "decode":
        kernel = context.kernel(prefill_attention, shape, tokens=context.tokens)
        starts = context.value(given["query_start"])
        operands = (*head, *sinks, positions, starts, table, *context.results(node))
        return (*launches, Launch(node.name, kernel, operands))
    splits = default_splits(shape, context.context)
    kernel = context.kernel(decode_attention, shape, splits)
    if splits == 1:
        operands = (*head, *sinks, positions, sequences, table, *context.results(node))
        return (*launches, Launch(node.name, kernel, operands))
    each = 4 * context.plan.max_tokens * heads * splits
    parts = context.scratch(each * value_dim, each, each)
    attend = Launch(node.name, kernel, (*head, positions, sequences, table, *parts))
    combine = context.kernel(combine_splits, shape, splits)
    operands = (BATCH, *parts, *sinks, *context.results(node))
    return (*launches, attend, Launch(node.name, combine, operands))
