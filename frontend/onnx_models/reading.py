"""Reading an ONNX file: its nodes, constants and weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import external_data_helper, inliner, numpy_helper

from graphwright.ir.errors import FrontendError

__all__ = ["STANDARD", "Graph", "Node", "read_model"]

STANDARD = ("", "ai.onnx")  # how the domain of ONNX's own operators is written


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
class Node:
    """A node of a graph, read once: the message's own objects come and go."""

    kind: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @staticmethod
    def of(node: onnx.NodeProto, folder: Path | None, keeps_types: bool) -> Node:
        return Node(
            node.op_type, "" if node.domain in STANDARD else node.domain,
            node.name or node.output[0], tuple(node.input), tuple(node.output),
            {each.name: _attribute(each, folder, keeps_types) for each in node.attribute},
        )  # fmt: skip


class Graph:
    """The nodes of a graph or of a branch, and the branch's own constants."""

    def __init__(self, graph: onnx.GraphProto, folder: Path | None, keeps_types: bool) -> None:
        self.nodes = [Node.of(node, folder, keeps_types) for node in graph.node]
        self.outputs = [each.name for each in graph.output]
        self.initializers = {each.name: _tensor(each, folder) for each in graph.initializer}
        if not keeps_types:
            small = {n: t for n, t in self.initializers.items() if t.numel() == 1}
            self.initializers.update({name: _widened(each) for name, each in small.items()})

    def all_nodes(self) -> Iterator[Node]:
        """Those of branches, too."""
        for node in self.nodes:
            yield node
            for each in node.attributes.values():
                if isinstance(each, Graph):
                    yield from each.all_nodes()


def _attribute(proto: onnx.AttributeProto, folder: Path | None, keeps_types: bool) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        tensor = _tensor(value, folder) if keeps_types else _widened(_tensor(value, folder))
        return tensor if tensor.dtype is torch.bfloat16 else tensor.numpy()
    if isinstance(value, onnx.GraphProto):
        return Graph(value, folder, keeps_types)
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
