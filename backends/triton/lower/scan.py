"""gw.cached_scan: a recurrence over the tokens of each sequence, in one kernel made for it."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.triton.context import LoweringContext, arguments
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.registry import lowering
from graphwright.backends.triton.scans.scan import scan
from graphwright.ir.errors import BackendError
from graphwright.ir.scan_step import ScanStep

__all__ = ["cached_scan"]

gw = torch.ops.gw


@lowering(gw.cached_scan.default)
def cached_scan(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """Each program takes its part of a sequence's states from the first token to the last."""
    given = arguments(node)
    step, rows = str(given["step"]), list(given["rows"])
    parsed = ScanStep.parse(step)
    kinds = [each.meta["val"].dtype for each in parsed.placeholders[len(parsed.states) :]]
    weights = [
        context.weight(weight, dense(kind))
        for weight, kind in zip(given["weights"], kinds[len(rows) :], strict=True)
    ]
    stored = ["int8" if kind is torch.bool else str(kind).removeprefix("torch.") for kind in kinds]
    dtypes = (*(context.dtype(row) for row in rows), *stored[len(rows) :])
    (out,) = context.result_dtypes(node)
    strides = tuple(context.view(row).row_stride for row in rows)
    try:
        made = scan(step, strides, dtypes, slot_stride=context.kv.slot_stride, out=out)
    except BackendError as error:
        raise BackendError(f"the recurrence '{node.name}': {error}") from error
    kernel = context.kernels.generated(made.kernel, made.source)
    operands = (
        Operand("batch"), *(context.value(row) for row in rows), *weights,
        context.state(given["state"]), context.value(given["positions"]),
        context.value(given["query_start"]), Operand("block_table"), *context.results(node),
    )  # fmt: skip
    return (Launch(node.name, kernel, operands),)
