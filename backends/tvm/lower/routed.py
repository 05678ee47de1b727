"""Mixtures of experts: gw.top_k, gw.routed_linear, gw.quantized_routed_linear, gw.weighted_sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.backends.blobs import Layout, dense
from graphwright.backends.rows import experts_of_rows
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.float_weights import FloatWeights
from graphwright.backends.tvm.kernels.linear_float import float_tilings
from graphwright.backends.tvm.kernels.linear_quantized import tile_bytes, tilings_of
from graphwright.backends.tvm.kernels.matmul import TILE
from graphwright.backends.tvm.kernels.quantize_rows import quantize_rows
from graphwright.backends.tvm.kernels.routed_groups import routed_groups
from graphwright.backends.tvm.kernels.routed_linear_float import routed_linear_float
from graphwright.backends.tvm.kernels.routed_linear_quantized import routed_linear_quantized
from graphwright.backends.tvm.kernels.top_k import top_k as top_k_kernel
from graphwright.backends.tvm.kernels.weighted_sum import weighted_sum as weighted_sum_kernel
from graphwright.backends.tvm.layouts import routed_float_layout, routed_quantized_layouts
from graphwright.backends.tvm.phases import Operand, Phase, parts_of
from graphwright.backends.tvm.product_choices import small_tilings
from graphwright.backends.tvm.registry import lowering
from graphwright.ir.memory import in_place
from graphwright.ir.schemes import Scheme

__all__ = ["quantized_routed_linear", "routed_linear", "top_k", "weighted_sum"]

gw = torch.ops.gw


def _refusal(context: LoweringContext, node: fx.Node) -> str | None:
    """What experts_of_rows refuses, and rows that are not float32."""
    given = arguments(node)
    read = [given[name] for name in ("x", "residual") if given.get(name) is not None]
    return experts_of_rows(context, node) or _float_rows(context, *read)


def _float_rows(context: LoweringContext, *values: fx.Node) -> str | None:
    for value in values:
        if value.meta["val"].dtype is not torch.float32:
            return f"'{value}' is {value.meta['val'].dtype}, not float32"
    return None


class _Routing:
    """What both routed products need to know of their node."""

    def __init__(self, context: LoweringContext, node: fx.Node) -> None:
        self.context, self.node, self.given = context, node, arguments(node)
        self.rows = context.rows(node)
        shape = self.given["weight"].meta["val"].shape
        self.experts, self.outputs, self.inputs = (int(size) for size in shape)
        self.slots = context.view(self.given["experts"]).row_size
        self.x = context.view(self.given["x"])
        self.optional = bool(self.given.get("optional"))
        self.adds = in_place(node) is not None
        self.residual = None if self.adds else self.given.get("residual")

    @property
    def options(self) -> dict[str, Any]:
        """What the kernels of both products take."""
        return {
            "slots": self.slots,
            "shared": self.x.row_size == self.inputs,
            "bias": self.given["bias"] is not None,
            "max_rows": self.context.plan.max_tokens,
        }

    def group(self, groups: Operand) -> Phase:
        """The phase that fills the scratch `groups`."""
        ids = self.given["experts"]
        kernel = self.context.kernel(
            routed_groups, self.experts, self.slots,
            experts_stride=self.context.view(ids).row_stride, optional=self.optional,
        )  # fmt: skip
        return self.phase(kernel, self.context.value(ids), groups)

    def weight(self, name: str, layout: Layout) -> Operand:
        """The experts' weight `name`, of which a token reads what its slots select."""
        return self.context.weight(self.given[name], layout, read=self._read(name, layout))

    def phase(self, kernel: Any, *operands: Operand) -> Phase:
        return Phase(self.node.name, kernel, operands, self.rows)

    @property
    def for_adapters(self) -> bool:
        """Is the product of no use where no token has an expert? If it is added to what is there,
        or all that reads it is."""
        return self.adds or (self.optional and all(map(in_place, self.node.users)))

    def product(self, kernel: Any, layout: Layout, *operands: Operand) -> Phase:
        """The phase of a product by weights in `layout`."""
        parts = parts_of(self._read("weight", layout))
        return Phase(
            self.node.name, kernel, operands, self.rows, parts=parts, adapters=self.for_adapters
        )

    @property
    def bias(self) -> list[Operand]:
        return [] if self.given["bias"] is None else [self.weight("bias", dense())]

    @property
    def added(self) -> list[Operand]:
        return [] if self.residual is None else [self.context.value(self.residual)]

    def _read(self, name: str, layout: Layout) -> int:
        """Bytes of a weight that a token reads."""
        size = layout.size(tuple(int(size) for size in self.given[name].meta["val"].shape))
        return size // self.experts * min(self.slots, self.experts)


@lowering(gw.routed_linear.default, when=_refusal)
def routed_linear(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """The pairs of tokens and slots are grouped once for all products with the same routing."""
    routing = _Routing(context, node)
    weights = FloatWeights.of(routing.given["weight"].meta["val"].dtype)
    (groups,), (unfilled,) = context.scratch(node), context.fills_scratch(node)
    expert = weights.tile_bytes(routing.inputs) * routing.outputs // TILE
    kernel = context.kernel(
        routed_linear_float, routing.outputs, routing.inputs, weights=weights,
        x_stride=routing.x.row_stride, optional=routing.optional, adds=routing.adds,
        residual=None if routing.residual is None else context.view(routing.residual).row_stride,
        tilings=small_tilings(expert, float_tilings(context.cpu, weights)), **routing.options,
    )  # fmt: skip
    layout = routed_float_layout(weights)
    product = routing.product(
        kernel, layout, groups.read(), context.value(routing.given["x"]),
        routing.weight("weight", layout), *routing.bias, *routing.added, *context.results(node),
    )  # fmt: skip
    return (routing.group(groups), product) if unfilled else (product,)


@lowering(gw.quantized_routed_linear.default, when=_refusal)
def quantized_routed_linear(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """A vector of x is quantized once, however many experts read it."""
    routing = _Routing(context, node)
    scheme = Scheme.parse(routing.given["scheme"])
    values, scales, groups = context.scratch(node)
    values_unfilled, _, groups_unfilled = context.fills_scratch(node)
    phases = []
    if values_unfilled:
        kernel = context.kernel(
            quantize_rows, routing.inputs, group=scheme.group, x_stride=routing.x.row_stride,
            vectors=routing.x.row_size // routing.inputs,
        )  # fmt: skip
        phases.append(routing.phase(kernel, context.value(routing.given["x"]), values, scales))
    if groups_unfilled:
        phases.append(routing.group(groups))
    expert = tile_bytes(routing.inputs, scheme) * routing.outputs // TILE
    kernel = context.kernel(
        routed_linear_quantized, routing.outputs, routing.inputs, scheme,
        tilings=small_tilings(expert, tilings_of(context.cpu, scheme, gathered=True)),
        **routing.options,
    )  # fmt: skip
    layouts = routed_quantized_layouts(scheme)
    parts = zip(("weight", "scale", "zero"), layouts, strict=False)
    weights = [routing.weight(name, layout) for name, layout in parts]
    phases.append(
        routing.product(
            kernel, layouts[0], groups.read(), values.read(), scales.read(), *weights,
            *routing.bias, *context.results(node),
        )
    )  # fmt: skip
    return tuple(phases)


def _float_input(context: LoweringContext, node: fx.Node) -> str | None:
    return _float_rows(context, arguments(node)["x"])


@lowering(gw.top_k.default, when=_float_input)
def top_k(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """A row may hold several vectors (groups of experts)."""
    given = arguments(node)
    view, length = context.view(given["x"]), int(given["x"].meta["val"].shape[-1])
    kernel = context.kernel(
        top_k_kernel, length, int(given["k"]), x_stride=view.row_stride,
        vectors=view.row_size // length,
    )  # fmt: skip
    operands = (context.value(given["x"]), *context.results(node))
    return (Phase(node.name, kernel, operands, context.rows(node)),)


def _float_inputs(context: LoweringContext, node: fx.Node) -> str | None:
    given = arguments(node)
    return _float_rows(context, given["y"], given["weights"])


@lowering(gw.weighted_sum.default, when=_float_inputs)
def weighted_sum(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """The slots of a token lie side by side in its row."""
    given = arguments(node)
    y, weights = context.view(given["y"]), context.view(given["weights"])
    kernel = context.kernel(
        weighted_sum_kernel, y.row_size // weights.row_size, weights.row_size,
        y_stride=y.row_stride, weights_stride=weights.row_stride,
    )  # fmt: skip
    operands = (
        context.value(given["y"]), context.value(given["weights"]), *context.results(node),
    )  # fmt: skip
    return (Phase(node.name, kernel, operands, context.rows(node)),)
