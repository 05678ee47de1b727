"""gw.cached_attention and gw.cached_choose_keys: append to the paged cache, then read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from graphwright.backends.rows import INPUTS
from graphwright.backends.triton.context import LoweringContext, arguments
from graphwright.backends.triton.kernels.attention_decode import (
    decode_attention,
    decode_scratch,
    default_splits,
    is_deep,
)
from graphwright.backends.triton.kernels.attention_prefill import prefill_attention, prefill_sizes
from graphwright.backends.triton.kernels.attention_tile import AttentionShape
from graphwright.backends.triton.kernels.choose_keys import choose_keys
from graphwright.backends.triton.kernels.index_scores import SCORED_KEYS, index_scores
from graphwright.backends.triton.kernels.rope import append_keys, append_kv, rope_append
from graphwright.backends.triton.kernels.sizes import quotient_up
from graphwright.backends.triton.kernels.token_slots import token_slots
from graphwright.backends.triton.kernels.turned_heads import TurnedHeads
from graphwright.backends.triton.kv_layout import BLOCK_SIZE
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.lower.linear import Heads, product
from graphwright.backends.triton.registry import lowering
from graphwright.ir.masks import Mask

__all__ = ["cached_attention", "cached_choose_keys", "slots_of"]

gw = torch.ops.gw
BATCH = Operand("batch")


def slots_of(
    context: LoweringContext, node: fx.Node, given: dict[str, Any], pool: int = 0
) -> tuple[Operand, Operand, tuple[Launch, ...]]:
    """(sequence of each token, its place in the pool, what computes them, once in a step)."""
    size, pools = 4 * context.plan.max_tokens, len(context.kv.pools)
    sequences, first = context.keep("sequences", size)
    slots, _ = context.keep("slots", size * pools)
    own = replace(slots, offset=slots.offset + pool * size)
    if not first:
        return sequences, own, ()
    kernel = context.kernel(
        token_slots, block_size=BLOCK_SIZE, pools=pools, most=context.plan.max_tokens
    )
    operands = (
        BATCH, context.value(given["positions"]), context.value(given["query_start"]),
        Operand("block_table"), sequences, slots,
    )  # fmt: skip
    return sequences, own, (Launch(node.name, kernel, operands),)


def appended(
    context: LoweringContext, node: fx.Node, given: dict[str, Any], slots: Operand,
    caches: list[Operand],
) -> tuple[tuple[Launch, ...], Operand, int]:  # fmt: skip
    """(what puts keys and values into the cache, the queries, how far apart their rows are)."""
    q, k, v = (given[name] for name in ("q", "k", "v"))
    kv_heads, dim = (int(size) for size in given["k_cache"].meta["val"].shape[2:])
    value_dim = int(given["v_cache"].meta["val"].shape[3])
    name = str(given["k_cache"].target)
    cache = context.kv.cache(name)
    options: dict[str, Any] = {
        "v_stride": context.view(v).row_stride, "block_stride": context.kv.stride(name, cache),
        "block_size": BLOCK_SIZE, "dtype": context.dtype(q), "cache": cache,
    }  # fmt: skip
    rotation = context.fusions.rotations.get(node)
    if rotation is None:
        stride = context.view(k).row_stride
        kernel = context.kernel(append_kv, kv_heads, dim, value_dim, k_stride=stride, **options)
        operands = (BATCH, context.value(k), context.value(v), slots, *caches)
        return (Launch(node.name, kernel, operands),), context.value(q), context.view(q).row_stride
    heads = int(q.meta["val"].shape[-2])
    turn = arguments(rotation.q)
    cos, sin = turn["cos"], turn["sin"]
    angles = (context.value(cos), context.value(sin))
    (queries,) = context.results(rotation.q)
    if rotation.product is not None:
        turned_heads = TurnedHeads(
            heads, kv_heads, dim, value_dim, int(cos.meta["val"].shape[-1]),
            bool(turn["interleaved"]), context.view(cos).row_stride, BLOCK_SIZE,
            options["block_stride"], context.dtype(cos), cache,
        )  # fmt: skip
        made = Heads(turned_heads, (*angles, slots), tuple(caches))
        launches = product(context, rotation.product, rotation.q, heads=made)
        return launches, queries, heads * dim
    turned, weights, eps = [], [], []
    for side, rope, norm in (
        ("q", rotation.q, rotation.q_norm), ("k", rotation.k, rotation.k_norm)
    ):  # fmt: skip
        source = arguments(rope)["x"]
        if norm is not None:
            normed = arguments(norm)
            source = normed["x"]
            weights.append(context.weight(normed["weight"]))
            options[f"{side}_norm"] = "float32"
        eps.append(float(normed["eps"]) if norm is not None else 0.0)
        turned.append(context.value(source))
        options[f"{side}_stride"] = context.view(source).row_stride
    kernel = context.kernel(
        rope_append, heads, kv_heads, dim, value_dim, int(cos.meta["val"].shape[-1]),
        angle_stride=context.view(cos).row_stride, interleaved=bool(turn["interleaved"]),
        angles=context.dtype(cos), eps=tuple(eps), **options,
    )  # fmt: skip
    operands = (BATCH, *turned, context.value(v), *weights, *angles, slots, queries, *caches)
    return (Launch(node.name, kernel, operands),), queries, heads * dim


@lowering(gw.cached_attention.default)
def cached_attention(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """Decode splits the keys of each token over programs; prefill shares them among queries. Keys
    that tokens choose for themselves are not shared: then prefill does what decode does."""
    given = arguments(node)
    heads, dim = (int(size) for size in given["q"].meta["val"].shape[-2:])
    kv_heads = int(given["k_cache"].meta["val"].shape[2])
    value_dim = int(given["v_cache"].meta["val"].shape[3])
    dtype = context.dtype(given["q"])
    name = str(given["k_cache"].target)
    cache = context.kv.cache(name)
    states = ("k_cache", "v_cache", "k_scale", "v_scale")
    caches = [context.state(given[name]) for name in states if given[name] is not None]
    sequences, slots, found = slots_of(context, node, given, context.kv.pool_of(name))
    launches = [*found]
    if given["k"] is None:
        queries, stride = context.value(given["q"]), context.view(given["q"]).row_stride
    else:
        append, queries, stride = appended(context, node, given, slots, caches)
        launches.extend(append)
    shape = AttentionShape(
        heads, kv_heads, dim, value_dim, stride, context.kv.stride(name, cache),
        float(given["scale"]), Mask.parse(given["mask"]), float(given["softcap"]),
        given["slopes"] is not None, given["sinks"] is not None, BLOCK_SIZE, dtype, cache,
        0 if given["chosen"] is None else int(given["chosen"].meta["val"].shape[1]),
    )  # fmt: skip
    extra = [context.weight(given[n]) for n in ("slopes", "sinks") if given[n] is not None]
    positions = context.value(given["positions"])
    head = (BATCH, queries, *caches, *extra, positions)
    table, results = context.table(given["k_cache"]), context.results(node)
    if context.plan.entry != "decode" and not shape.chosen:
        sizes = prefill_sizes(shape, min(chip.arch for chip in context.chips))
        kernel = context.kernel(prefill_attention, shape, tokens=context.tokens, **sizes)
        starts = context.value(given["query_start"])
        return (*launches, Launch(node.name, kernel, (*head, starts, table, *results)))
    splits = default_splits(shape, context.context) if context.plan.entry == "decode" else 1
    least = min(chip.multiprocessors for chip in context.chips)
    deep = is_deep(shape, splits, context.tokens, least)
    alone = context.tokens == 1 and positions.parameter in INPUTS and not shape.chosen
    kernel = context.kernel(decode_attention, shape, splits, deep=deep, alone=alone)
    scratch: tuple[Operand, ...] = ()
    if splits > 1:
        partial, each, counters = decode_scratch(shape, splits, context.tokens)
        scratch = (*context.scratch(partial, each, each), context.counters(counters))
    chosen = () if given["chosen"] is None else (context.value(given["chosen"]),)
    tail = (table, *chosen, *scratch, *results)
    operands = (*head, *tail) if alone else (*head, sequences, *tail)
    return (*launches, Launch(node.name, kernel, operands))


@lowering(gw.cached_choose_keys.default)
def cached_choose_keys(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """Appends the index keys, scores all of them for each token, then takes the best. The scores
    are as long as the context."""
    given = arguments(node)
    heads, dim = (int(size) for size in given["q"].meta["val"].shape[-2:])
    kv_heads = int(given["cache"].meta["val"].shape[2])
    name = str(given["cache"].target)
    kind = context.kv.index_cache(name)
    stride, state = context.kv.stride(name, kind), context.state(given["cache"])
    sequences, slots, found = slots_of(context, node, given, context.kv.pool_of(name))
    append = context.kernel(
        append_keys, kv_heads, dim, k_stride=context.view(given["k"]).row_stride,
        block_stride=stride, block_size=BLOCK_SIZE, dtype=context.dtype(given["k"]), cache=kind,
    )  # fmt: skip
    score = context.kernel(
        index_scores, heads, kv_heads, dim, q_stride=context.view(given["q"]).row_stride,
        w_stride=context.view(given["weights"]).row_stride, block_stride=stride,
        mask=Mask.parse(given["mask"]), context=context.context, block_size=BLOCK_SIZE,
        dtype=context.dtype(given["q"]), weights=context.dtype(given["weights"]), cache=kind,
    )  # fmt: skip
    choose = context.kernel(choose_keys, int(given["count"]), context=context.context)
    width = quotient_up(context.context, SCORED_KEYS) * SCORED_KEYS
    (scores,) = context.scratch(4 * context.tokens * width)
    positions = context.value(given["positions"])
    operands = (
        BATCH, context.value(given["q"]), context.value(given["weights"]), state, positions,
        sequences, context.table(given["cache"]), scores,
    )  # fmt: skip
    return (
        *found,
        Launch(node.name, append, (BATCH, context.value(given["k"]), slots, state)),
        Launch(node.name, score, operands),
        Launch(node.name, choose, (BATCH, scores, positions, *context.results(node))),
    )
