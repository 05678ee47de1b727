"""gw.cached_attention: append to the paged cache, then attend over it."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.append_kv import append_kv
from graphwright.backends.tvm.kernels.attention import attention
from graphwright.backends.tvm.phases import Operand, Phase
from graphwright.backends.tvm.registry import lowering
from graphwright.ir.masks import Mask

__all__ = ["cached_attention"]

gw = torch.ops.gw


@lowering(gw.cached_attention.default)
def cached_attention(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """Appends, then attends, so that every thread sees all keys of this step."""
    given = arguments(node)
    heads, dim = (int(size) for size in given["q"].meta["val"].shape[-2:])
    kv_heads = int(given["k_cache"].meta["val"].shape[2])
    value_dim = int(given["v_cache"].meta["val"].shape[3])
    stride = context.kv.block_stride
    caches = (context.state(given["k_cache"]), context.state(given["v_cache"]))
    paging = (
        context.value(given["positions"]),
        context.value(given["query_start"]),
        Operand("block_table"),
    )
    phases = []
    if given["k"] is not None:
        kernel = context.kernel(
            append_kv, kv_heads, dim, value_dim, block_stride=stride,
            k_stride=context.view(given["k"]).row_stride,
            v_stride=context.view(given["v"]).row_stride,
        )  # fmt: skip
        new = (context.value(given["k"]), context.value(given["v"]))
        phases.append(Phase(node.name, kernel, (Operand("batch"), *new, *caches, *paging), "T"))
    extras = {name: given[name] for name in ("slopes", "sinks")}
    kernel = context.kernel(
        attention, heads, kv_heads, dim, value_dim, block_stride=stride,
        q_stride=context.view(given["q"]).row_stride, scale=given["scale"],
        mask=Mask.parse(given["mask"]), softcap=given["softcap"],
        **{name: value is not None for name, value in extras.items()},
    )  # fmt: skip
    weights = tuple(
        context.weight(value, dense()) for value in extras.values() if value is not None
    )
    operands = (
        Operand("batch"), context.value(given["q"]), *caches, *paging, *weights,
        *context.results(node),
    )  # fmt: skip
    phases.append(Phase(node.name, kernel, operands, "T"))
    return tuple(phases)
