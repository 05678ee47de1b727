"""Regions: what no op of its own computes."""

from __future__ import annotations

from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.tvm.context import LoweringContext
from graphwright.backends.tvm.kernels.region import region as region_kernel
from graphwright.backends.tvm.kernels.region import region_name
from graphwright.backends.tvm.phases import Operand, Phase
from graphwright.backends.tvm.registry import REGION, lowering
from graphwright.ir.layout import row_size
from graphwright.ir.memory import results

__all__ = ["region"]

_FEW_ELEMENTS = 1024  # a region may do much with each


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
    name = region_name(module, strides, context.cpu)
    kernel = context.kernels.named(
        name, lambda: region_kernel(module, tuple(strides), cpu=context.cpu)
    )
    operands.extend(context.results(node))
    elements = sum(row_size(value) for value in results(node).values())
    elements += sum(context.view(each).row_size for each in node.args if _is_value(context, each))
    replicated = context.replicable(node, elements, _FEW_ELEMENTS)
    return (Phase(node.name, kernel, tuple(operands), context.rows(node), replicated),)


def _is_value(context: LoweringContext, argument: object) -> bool:
    return isinstance(argument, fx.Node) and context.program.weight_of(argument) is None
