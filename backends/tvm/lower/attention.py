"""gw.cached_attention and gw.cached_choose_keys: append to the paged cache, then read it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.append_kv import append_keys, append_kv
from graphwright.backends.tvm.kernels.attention import attention
from graphwright.backends.tvm.kernels.attention_chosen import MOST_CHOSEN, attention_chosen
from graphwright.backends.tvm.kernels.attention_combine import attention_combine
from graphwright.backends.tvm.kernels.choose_keys import choose_combine, choose_keys
from graphwright.backends.tvm.phases import Operand, Phase
from graphwright.backends.tvm.registry import lowering
from graphwright.ir.masks import Mask
from graphwright.ir.memory import ATTENTION_SEGMENTS

__all__ = ["cached_attention", "cached_choose_keys"]

gw = torch.ops.gw


@lowering(gw.cached_attention.default)
def cached_attention(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """Appends, then attends, so that every thread sees all keys of this step; where the keys of a
    token are cut into segments, threads take those that others have not begun, and the results are
    put together last."""
    given = arguments(node)
    block = context.kv.block_of(str(given["k_cache"].target))
    heads = int(given["q"].meta["val"].shape[-2])
    states = ("k_cache", "v_cache", "k_scale", "v_scale")
    caches = tuple(context.state(given[name]) for name in states if given[name] is not None)
    positions, query_start = context.value(given["positions"]), context.value(given["query_start"])
    paging = (positions, query_start, context.table(given["k_cache"]))
    batch = Operand("batch")
    phases = []
    if given["k"] is not None:
        kernel = context.kernel(
            append_kv, block,
            k_stride=context.view(given["k"]).row_stride,
            v_stride=context.view(given["v"]).row_stride,
        )  # fmt: skip
        new = (context.value(given["k"]), context.value(given["v"]))
        phases.append(Phase(node.name, kernel, (batch, *new, *caches, *paging), "T"))
    extras = {name: given[name] for name in ("slopes", "sinks")}
    weights = tuple(
        context.weight(value, dense()) for value in extras.values() if value is not None
    )
    options: dict[str, Any] = {
        "q_stride": context.view(given["q"]).row_stride, "scale": given["scale"],
        "softcap": given["softcap"],
        **{name: value is not None for name, value in extras.items()},
    }  # fmt: skip
    partial, results = context.scratch(node), context.results(node)
    q = context.value(given["q"])
    if given["chosen"] is not None:
        count = int(given["chosen"].meta["val"].shape[1])
        kernel = context.kernel(attention_chosen, heads, block, count, **options)
        chosen = context.value(given["chosen"])
        operands = (batch, q, *caches, *paging, chosen, *weights, *results)
        return (*phases, Phase(node.name, kernel, operands, "T", parts=ATTENTION_SEGMENTS))
    mask = Mask.parse(given["mask"])
    kernel = context.kernel(
        attention, heads, block, mask=mask, split=bool(partial), max_rows=context.plan.max_tokens,
        **options,
    )  # fmt: skip
    operands = (batch, q, *caches, *paging, *weights, *partial, *results)
    parts = ATTENTION_SEGMENTS if partial else 1  # of about a segment each
    phases.append(Phase(node.name, kernel, operands, "T", parts=parts))
    if partial:
        kernel = context.kernel(
            attention_combine, heads, block, mask=mask, max_rows=context.plan.max_tokens
        )
        operands = (batch, positions, query_start, *partial, *results)
        phases.append(Phase(node.name, kernel, operands, "T"))
    return tuple(phases)


def _few_enough(context: LoweringContext, node: fx.Node) -> str | None:
    count = int(node.kwargs["count"])  # type: ignore[arg-type]
    return None if count <= MOST_CHOSEN else f"it chooses {count} keys, more than {MOST_CHOSEN}"


@lowering(gw.cached_choose_keys.default, when=_few_enough)
def cached_choose_keys(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """Appends the index keys, then chooses; where the tokens are few, their keys are cut into
    segments, and the best of all are put together last."""
    given = arguments(node)
    block = context.kv.index_block_of(str(given["cache"].target))
    heads, count = int(given["q"].meta["val"].shape[-2]), given["count"]
    cache, batch = context.state(given["cache"]), Operand("batch")
    positions, query_start = context.value(given["positions"]), context.value(given["query_start"])
    paging = (positions, query_start, context.table(given["cache"]))
    k_stride = context.view(given["k"]).row_stride
    kernel = context.kernel(append_keys, block, k_stride=k_stride)
    new = (batch, context.value(given["k"]), cache, *paging)
    phases = [Phase(node.name, kernel, new, "T")]
    partial, results = context.scratch(node), context.results(node)
    strides = {
        "q_stride": context.view(given["q"]).row_stride,
        "w_stride": context.view(given["weights"]).row_stride,
    }
    mask = Mask.parse(given["mask"])
    kernel = context.kernel(
        choose_keys, heads, block, count, mask=mask, split=bool(partial), **strides
    )
    inputs = (context.value(given["q"]), context.value(given["weights"]), cache)
    operands: tuple[Operand, ...] = (batch, *inputs, *paging, *(partial or results))
    phases.append(Phase(node.name, kernel, operands, "T", parts=ATTENTION_SEGMENTS))
    if partial:
        kernel = context.kernel(choose_combine, heads, block, count, mask=mask)
        operands = (batch, positions, query_start, *partial, *results)
        phases.append(Phase(node.name, kernel, operands, "T"))
    return tuple(phases)
