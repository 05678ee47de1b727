"""An ONNX graph as an nn.Module: its nodes are computed one by one, in torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import external_data_helper, inliner, numpy_helper
from torch import nn

from graphwright.frontend.onnx_models import attention as attention  # these declare operators
from graphwright.frontend.onnx_models import elementwise as elementwise
from graphwright.frontend.onnx_models import products as products
from graphwright.frontend.onnx_models import reductions as reductions
from graphwright.frontend.onnx_models import shaping as shaping
from graphwright.frontend.onnx_models.registry import OPERATORS, Operator, Result
from graphwright.frontend.onnx_models.shape_numbers import computed_beforehand
from graphwright.frontend.onnx_models.values import MOST_KNOWN, Call, Value
from graphwright.ir.errors import FrontendError

__all__ = ["OnnxModule", "read_model"]

_STANDARD = ("", "ai.onnx")


def read_model(path: Path) -> onnx.ModelProto:
    """The model at `path`, its functions expanded; weights in other files are not read yet.

    Raises FrontendError.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise FrontendError(f"'{path}' is not an ONNX model, or is damaged: {error}.") from error
    if not model.graph.node:
        raise FrontendError(f"'{path}' is not an ONNX model, or is damaged: it has no nodes.")
    return inliner.inline_local_functions(model) if model.functions else model


@dataclass(frozen=True)
class _Node:
    """A node of a graph, read once: the message's own objects come and go."""

    kind: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @staticmethod
    def of(node: onnx.NodeProto, folder: Path | None, keeps_types: bool) -> _Node:
        return _Node(
            node.op_type, "" if node.domain in _STANDARD else node.domain,
            node.name or node.output[0], tuple(node.input), tuple(node.output),
            {each.name: _attribute(each, folder, keeps_types) for each in node.attribute},
        )  # fmt: skip


class _Graph:
    """The nodes of a graph or of a branch, and the branch's own constants."""

    def __init__(self, graph: onnx.GraphProto, folder: Path | None, keeps_types: bool) -> None:
        self.nodes = [_Node.of(node, folder, keeps_types) for node in graph.node]
        self.outputs = [each.name for each in graph.output]
        self.inputs = [each.name for each in graph.input]
        self.initializers = {each.name: _tensor(each, folder) for each in graph.initializer}
        if not keeps_types:
            small = {n: t for n, t in self.initializers.items() if t.numel() == 1}
            self.initializers.update({name: _widened(each) for name, each in small.items()})

    def all_nodes(self) -> Iterator[_Node]:
        """Those of branches, too."""
        for node in self.nodes:
            yield node
            for each in node.attributes.values():
                if isinstance(each, _Graph):
                    yield from each.all_nodes()


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
        self.opset = next((e.version for e in model.opset_import if e.domain in _STANDARD), 1)
        self.graph = _Graph(model.graph, folder, keeps_types)
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

    def _run(self, graph: _Graph, values: dict[str, Value]) -> None:
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

    def _choose(self, node: _Node, values: dict[str, Value]) -> None:
        """A branch whose condition is known beforehand."""
        condition = values[node.inputs[0]]
        if isinstance(condition, torch.Tensor):
            raise FrontendError(f"the node '{node.name}' (If) of the ONNX graph depends on data.")
        taken = "then_branch" if condition.reshape(-1)[0] else "else_branch"
        branch: _Graph = node.attributes[taken]
        inner = dict(values)
        for name, tensor in branch.initializers.items():
            inner[name] = tensor.numpy() if _is_known(tensor) else tensor
        self._run(branch, inner)
        values.update(
            (name, inner[result])
            for name, result in zip(node.outputs, branch.outputs, strict=True)
        )  # fmt: skip

    def _call(self, node: _Node, values: dict[str, Value]) -> Call:
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


def _attribute(proto: onnx.AttributeProto, folder: Path | None, keeps_types: bool) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        tensor = _tensor(value, folder) if keeps_types else _widened(_tensor(value, folder))
        return tensor if tensor.dtype is torch.bfloat16 else tensor.numpy()
    if isinstance(value, onnx.GraphProto):
        return _Graph(value, folder, keeps_types)
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, (int, float)) else list(value)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """A constant as float32; the lowest float16, which hides keys in masks, stays the lowest."""
    if not tensor.is_floating_point() or tensor.dtype is torch.float32:
        return tensor
    wide = tensor.to(torch.float32)
    if tensor.dtype is torch.float16:
        lowest = torch.finfo(torch.float32).min
        wide = torch.where(tensor == torch.finfo(torch.float16).min, lowest, wide)
    return wide


def _tensor(proto: onnx.TensorProto, folder: Path | None) -> torch.Tensor:
    """Its values; what lies in another file is mapped."""
    if external_data_helper.uses_external_data(proto):
        array = _mapped(proto, folder)
    else:
        array = numpy_helper.to_array(proto)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.name in ("int4", "uint4"):
        array = array.astype(np.int8 if array.dtype.name == "int4" else np.uint8)
    if array.dtype == object or array.dtype.name not in _NUMPY:
        raise FrontendError(f"'{proto.name}' of the ONNX graph holds {array.dtype.name}.")
    return torch.from_numpy(array if array.flags.writeable else _writeable(array))


_NUMPY = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


def _writeable(array: Any) -> Any:
    """torch asks for arrays that could be written to; nothing writes to these."""
    return np.array(array)


def _mapped(proto: onnx.TensorProto, folder: Path | None) -> Any:
    info = external_data_helper.ExternalDataInfo(proto)
    where = info.location
    path = (folder or Path()) / where
    if folder is None or Path(where).is_absolute() or ".." in Path(where).parts:
        raise FrontendError(f"'{proto.name}' lies in '{where}', which is no file beside the model.")
    kind = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
    packed = kind.name in ("int4", "uint4")
    count = int(np.prod(proto.dims, dtype=np.int64))
    try:
        if packed:
            raw = np.memmap(path, np.uint8, "c", info.offset or 0, (-(-count // 2),))
            pairs = np.stack([raw & 15, raw >> 4], -1).reshape(-1)[:count].reshape(proto.dims)
            return pairs if kind.name == "uint4" else (pairs.astype(np.int8) ^ 8) - 8
        stored = np.dtype(np.int16) if kind.name == "bfloat16" else kind
        array: Any = np.memmap(path, stored, "c", info.offset or 0, tuple(proto.dims) or (1,))
    except (OSError, ValueError) as error:
        raise FrontendError(f"the weights of '{proto.name}' cannot be read: {error}.") from error
    array = array.reshape(tuple(proto.dims))
    return array.view(kind) if kind.name == "bfloat16" else array
