"""gw.cached_attention: append to the paged cache, then attend over it."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.append_kv import append_kv
from graphwright.backends.tvm.kernels.attention import attention
from graphwright.backends.tvm.kernels.attention_combine import attention_combine
from graphwright.backends.tvm.phases import Operand, Phase
from graphwright.backends.tvm.registry import lowering
from graphwright.ir.masks import Mask
from graphwright.ir.memory import ATTENTION_SEGMENTS

__all__ = ["cached_attention"]

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
    paging = (positions, query_start, Operand("block_table"))
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
    mask = Mask.parse(given["mask"])
    partial, results = context.scratch(node), context.results(node)
    kernel = context.kernel(
        attention, heads, block, q_stride=context.view(given["q"]).row_stride,
        scale=given["scale"], mask=mask, softcap=given["softcap"], split=bool(partial),
        max_rows=context.plan.max_tokens,
        **{name: value is not None for name, value in extras.items()},
    )  # fmt: skip
    weights = tuple(
        context.weight(value, dense()) for value in extras.values() if value is not None
    )
    operands = (batch, context.value(given["q"]), *caches, *paging, *weights, *partial, *results)
    parts = ATTENTION_SEGMENTS if partial else 1  # of about a segment each
    phases.append(Phase(node.name, kernel, operands, "T", parts=parts))
    if partial:
        kernel = context.kernel(
            attention_combine, heads, block, mask=mask, max_rows=context.plan.max_tokens
        )
        operands = (batch, positions, query_start, *partial, *results)
        phases.append(Phase(node.name, kernel, operands, "T"))
    return tuple(phases)
