"""gw.cached_scan: a recurrence over the tokens of each sequence, in one kernel made for it."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.backends.blobs import Layout, dense
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.scan import plan_scan, scan, scan_name
from graphwright.backends.tvm.phases import Operand, Phase, parts_of
from graphwright.backends.tvm.registry import lowering
from graphwright.ir.errors import BackendError

__all__ = ["cached_scan"]

gw = torch.ops.gw


@lowering(gw.cached_scan.default)
def cached_scan(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """Every sequence is a thread's from its first token of the step to its last, tile by tile."""
    given = arguments(node)
    step, slot_stride = str(given["step"]), context.kv.slot_stride
    strides = tuple(context.view(row).row_stride for row in given["rows"])
    name = scan_name(step, strides, slot_stride, context.cpu)
    try:
        kernel = context.kernels.named(
            name, lambda: scan(step, strides, slot_stride=slot_stride, cpu=context.cpu)
        )
    except BackendError as error:
        raise BackendError(f"the recurrence '{node.name}': {error}") from error
    tiles = plan_scan(step, context.cpu)
    weights = [
        context.weight(weight, _layout(own.meta["val"].dtype, tiles.weights.get(own)))
        for weight, own in zip(given["weights"], tiles.stages.body.weights, strict=True)
    ]
    operands = (
        Operand("batch"), *(context.value(row) for row in given["rows"]), *weights,
        context.state(given["state"]), context.value(given["positions"]),
        context.value(given["query_start"]), Operand("block_table"), *context.results(node),
    )  # fmt: skip
    size = 4 * sum(state.count for state in tiles.stages.body.states)
    return (Phase(node.name, kernel, operands, "T", parts=min(tiles.count, parts_of(size))),)


def _layout(dtype: torch.dtype, order: tuple[int, ...] | None) -> Layout:
    """The weight as it is, or with its axes in another order."""
    plain = dense(dtype)
    if order is None:
        return plain
    name = f"{plain.name}-{'-'.join(map(str, order))}"
    return Layout(name, plain.dtype, plain.size, lambda weight: plain.pack(weight.permute(order)))
