"""Regions: what no op of its own computes."""

from __future__ import annotations

from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.tvm.context import LoweringContext
from graphwright.backends.tvm.kernels.region import region as region_kernel
from graphwright.backends.tvm.phases import Operand, Phase
from graphwright.backends.tvm.registry import REGION, lowering

__all__ = ["region"]


@lowering(REGION)
def region(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """One kernel, generated from the nodes inside."""
    module = context.program.module.get_submodule(str(node.target))
    assert isinstance(module, fx.GraphModule)
    strides: list[int] = []
    operands: list[Operand] = []
    for argument in node.args:
        assert isinstance(argument, fx.Node)
        if context.program.weight_of(argument) is not None:
            strides.append(0)
            operands.append(context.weight(argument, dense(argument.meta["val"].dtype)))
        else:
            strides.append(context.view(argument).row_stride)
            operands.append(context.value(argument))
    kernel = region_kernel(module, tuple(strides), cpu=context.cpu)
    operands.extend(context.results(node))
    return (Phase(node.name, kernel, tuple(operands), context.rows(node)),)
