"""The backend that `torch.compile` finds under the name "graphwright".

Each graph is made functional by AOTAutograd. What works row by row around its matrix products, a
whole layer from one attention to the next, becomes native code; torch runs the rest.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from functorch.compile import make_boxed_func
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext, tracing
from torch.utils._python_dispatch import _disable_current_modes

from graphwright.commands.dependencies import what_is_missing
from graphwright.ir.errors import BackendError

if TYPE_CHECKING:
    from graphwright.torch_backend.compile_graph import GraphReport

__all__ = ["graphwright", "reports"]

_LOG = logging.getLogger("graphwright.torch_backend")
_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_REPORTS: list[GraphReport] = []


def graphwright(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """What torch.compile(model, backend="graphwright", options=…) calls for each graph.

    options: see BackendOptions. mode: accepted, and of no consequence. Graphs of which gradients
    are wanted are left to torch, with a warning. Raises PassError for a wrong option, BackendError
    where packages are missing.
    """
    if (missing := what_is_missing()) is not None:
        raise BackendError(missing)
    from graphwright.torch_backend.compile_graph import compile_graph
    from graphwright.torch_backend.options import BackendOptions

    settings = BackendOptions.of(options)
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]

    def inference(functional: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        places = _weight_places(functional)
        placeholders = functional.graph.find_nodes(op="placeholder")
        known: dict[fx.Node, torch.Tensor] = {}
        called: dict[fx.Node, str] = {}
        if len(placeholders) == len(names):
            called = {placeholders[place]: _model_name(names[place]) for place in places}
            values = ((placeholders[place], example_inputs[place]) for place in places)
            known = {node: each for node, each in values if type(each) in _PLAIN}
        weights = [placeholders[place] for place in places]
        with tracing(None), _disable_current_modes():  # those of the graph's trace
            compiled, report = compile_graph(functional, weights, called, known, settings)
        _REPORTS.append(report)
        _LOG.info("%s", report)
        if settings.report:
            print(f"graphwright: {report}", file=sys.stderr)
        return compiled

    compiled: Callable[..., Any] = aot_autograd(
        fw_compiler=_forward_for_gradients, bw_compiler=_by_torch, inference_compiler=inference,
        keep_inference_input_mutations=True,
    )(module, example_inputs)  # fmt: skip
    return compiled


def _reset() -> None:
    """Called by torch._dynamo.reset(): graphs compiled afterwards pack their weights anew."""
    from graphwright.torch_backend.packed_weights import forget_packed

    forget_packed()


graphwright.reset = _reset  # type: ignore[attr-defined]


def reports() -> list[GraphReport]:
    """What was taken of each graph so far, in the order they were compiled."""
    return list(_REPORTS)


def _weight_places(module: fx.GraphModule) -> list[int]:
    """Which arguments are parameters and buffers that the graph does not write to."""
    context = TracingContext.try_get()
    meta = context.fw_metadata if context is not None else None
    if meta is None or meta.static_input_indices is None:
        return []
    placeholders = module.graph.find_nodes(op="placeholder")
    written = {
        node.args[0]
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    }
    return [place for place in meta.static_input_indices if placeholders[place] not in written]


def _forward_for_gradients(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    products = sum(node.target in _PRODUCTS for node in module.graph.nodes)
    if products:
        _LOG.warning(
            "a graph with %d matrix products is left to torch, as gradients are wanted of it: call "
            "the model under torch.no_grad(), or after requires_grad_(False)",
            products,
        )
    return _by_torch(module, inputs)


def _by_torch(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    left: Callable[..., Any] = make_boxed_func(module.forward)
    return left


def _model_name(placeholder: str) -> str:
    """`l_self_modules_model_modules_layers_modules_0_modules_mlp_parameters_weight_` as
    `model_layers_0_mlp_weight`."""
    name = re.sub(r"^l_(self_|args_\d+_|kwargs_)?", "", placeholder, flags=re.IGNORECASE)
    return re.sub(r"(^|_)(modules|parameters|buffers)_", r"\1", name).strip("_")
