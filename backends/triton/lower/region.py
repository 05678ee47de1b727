"""Regions: what no op of its own computes."""

from __future__ import annotations

from typing import Any

from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.triton.context import LoweringContext
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.regions.region import region as region_kernel
from graphwright.backends.triton.registry import REGION, lowering

__all__ = ["region"]


@lowering(REGION)
def region(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """One kernel, generated from the nodes inside."""
    module: Any = context.program.module.get_submodule(str(node.target))
    strides: list[int] = []
    dtypes: list[str] = []
    operands: list[Operand] = [Operand("batch")]
    for argument in node.args:
        assert isinstance(argument, fx.Node)
        dtypes.append(context.dtype(argument))
        if context.program.weight_of(argument) is not None:
            strides.append(0)
            operands.append(context.weight(argument, dense(argument.meta["val"].dtype)))
        else:
            strides.append(context.view(argument).row_stride)
            operands.append(context.value(argument))
    dtypes.extend(context.result_dtypes(node))
    made = region_kernel(module, strides, dtypes, context.rows(node))
    kernel = context.kernels.generated(made.kernel, made.source)
    return (Launch(node.name, kernel, (*operands, *context.results(node))),)
