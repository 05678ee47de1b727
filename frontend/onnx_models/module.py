"""An ONNX graph as an nn.Module: its nodes are computed one by one, in torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import nn

from graphwright.frontend.onnx_models import attention as attention  # these declare operators
from graphwright.frontend.onnx_models import elementwise as elementwise
from graphwright.frontend.onnx_models import products as products
from graphwright.frontend.onnx_models import reductions as reductions
from graphwright.frontend.onnx_models import shaping as shaping
from graphwright.frontend.onnx_models.reading import STANDARD, Graph, Node
from graphwright.frontend.onnx_models.registry import OPERATORS, Operator, Result
from graphwright.frontend.onnx_models.shape_numbers import computed_beforehand
from graphwright.frontend.onnx_models.values import MOST_KNOWN, Call, Value
from graphwright.ir.errors import FrontendError

__all__ = ["OnnxModule"]


class OnnxModule(nn.Module):
    """Computes a graph; what its forward takes is for a subclass to say.

    Initializers are parameters; small ones of integers are numbers that are known beforehand.
    folder: where files of weights lie, which are mapped. keeps_types: else every float is float32.
    Raises FrontendError for operators that are not supported, all at once.
    """

    def __init__(
        self, model: onnx.ModelProto, folder: Path | None = None, *, keeps_types: bool = False
    ) -> None:
        super().__init__()
        self.keeps_types = keeps_types
        self.opset = next((e.version for e in model.opset_import if e.domain in STANDARD), 1)
        self.graph = Graph(model.graph, folder, keeps_types)
        self._refuse_unknown()
        self._names: dict[str, str] = {}  # of parameters, by those of initializers
        self._known: dict[str, Value] = {}
        for name, tensor in self.graph.initializers.items():
            self._keep(name, tensor)
        self.graph.initializers.clear()

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        if _is_known(tensor):
            self._known[name] = tensor.numpy()
            return
        own = name.replace(".", "/") or "_"
        while own in self._names.values() or hasattr(self, own):
            own += "_"
        self._names[name] = own
        self.register_parameter(own, nn.Parameter(tensor, requires_grad=False))

    def compute(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """The outputs by their names, from the inputs by theirs."""
        values: dict[str, Value] = {**self._known, **given}
        for name, own in self._names.items():
            values.setdefault(name, getattr(self, own))
        self._run(self.graph, values)
        return {name: values[name] for name in self.graph.outputs if name in values}

    def _run(self, graph: Graph, values: dict[str, Value]) -> None:
        for node in graph.nodes:
            if node.kind == "If":
                self._choose(node, values)
                continue
            call = self._call(node, values)
            found = None if node.domain else computed_beforehand(call)
            if found is None:
                found = _computed(OPERATORS[node.domain, node.kind], call)
            results = found if isinstance(found, tuple) else (found,)
            values.update(zip(node.outputs, results, strict=False))

    def _choose(self, node: Node, values: dict[str, Value]) -> None:
        """A branch whose condition is known beforehand."""
        condition = values[node.inputs[0]]
        if isinstance(condition, torch.Tensor):
            raise FrontendError(f"the node '{node.name}' (If) of the ONNX graph depends on data.")
        taken = "then_branch" if condition.reshape(-1)[0] else "else_branch"
        branch: Graph = node.attributes[taken]
        inner = dict(values)
        for name, tensor in branch.initializers.items():
            inner[name] = tensor.numpy() if _is_known(tensor) else tensor
        self._run(branch, inner)
        values.update(
            (name, inner[result])
            for name, result in zip(node.outputs, branch.outputs, strict=True)
        )  # fmt: skip

    def _call(self, node: Node, values: dict[str, Value]) -> Call:
        missing = [each for each in node.inputs if each and each not in values]
        if missing:
            raise FrontendError(
                f"the node '{node.name}' ({node.kind}) of the ONNX graph reads '{missing[0]}', "
                "which nothing has written."
            )
        inputs = [values[each] if each else None for each in node.inputs]
        return Call(
            node.kind, node.name, inputs, node.attributes, len(node.outputs), self.opset,
            self.keeps_types,
        )  # fmt: skip

    def _refuse_unknown(self) -> None:
        unknown: Counter[str] = Counter()
        for node in self.graph.all_nodes():
            if (node.domain, node.kind) in OPERATORS or (not node.domain and node.kind in _OWN):
                continue
            unknown[f"{node.domain}.{node.kind}" if node.domain else node.kind] += 1
        if unknown:
            found = ", ".join(f"{kind} ({count})" for kind, count in sorted(unknown.items()))
            raise FrontendError(f"the ONNX graph has operators that are not supported: {found}.")


_OWN = ("If", "Shape", "Size")  # which are not in the table


def _is_known(tensor: torch.Tensor) -> bool:
    if tensor.dtype is torch.bfloat16:
        return False
    return tensor.numel() <= (1 if tensor.is_floating_point() else MOST_KNOWN)


def _computed(function: Operator, call: Call) -> Result:
    try:
        return function(call)
    except (TypeError, IndexError, AttributeError, AssertionError, KeyError) as error:
        raise call.error(f"cannot be computed: {type(error).__name__}: {error}") from error
