"""The graph as text: deterministic, one line a node, symbolic sizes by their public names.

What a region or the step of a recurrence computes follows its call, indented. Names are given anew
by op and order, so that two runs of the same pipeline print the same text.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import torch
from torch import fx

from graphwright.ir.program import Program
from graphwright.ir.scan_step import ScanStep

__all__ = ["format_graph", "format_value"]

_SCANS = (torch.ops.gw.scan_along_tokens.default, torch.ops.gw.cached_scan.default)
_DTYPES = {
    torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8",
    torch.uint8: "u8", torch.bool: "bool",
}  # fmt: skip


def format_value(value: Any, dims: dict[str, str]) -> str:
    """`f32[T, 64]` for a fake tensor, `(…, …)` for several, the name for a symbolic integer."""
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(_size(size, dims) for size in value.shape)
        return f"{_DTYPES.get(value.dtype, str(value.dtype))}[{sizes}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(format_value(item, dims) for item in value) + ")"
    return _size(value, dims)


def _size(size: Any, dims: dict[str, str]) -> str:
    if isinstance(size, int):
        return str(size)
    names = dims if isinstance(dims, _Names) else _Names(dims)
    return names[size.node.expr if isinstance(size, torch.SymInt) else size]


class _Names(dict[Any, str]):
    """The text of symbolic sizes with public names in them; each is written once a graph."""

    def __init__(self, dims: dict[str, str]) -> None:
        super().__init__()
        self._longest_first = sorted(dims.items(), key=lambda item: len(item[0]), reverse=True)

    def __missing__(self, symbol: Any) -> str:
        text = str(symbol)
        for name, public in self._longest_first:
            text = text.replace(name, public)
        self[symbol] = text
        return text


def format_graph(program: Program) -> str:
    """The whole program as text, ending in a newline."""
    return _format(program.graph, program.module, _Names(program.dims), indent="")


def _format(graph: fx.Graph, module: fx.GraphModule, dims: dict[str, str], indent: str) -> str:
    names: dict[fx.Node, str] = {}
    counts: Counter[str] = Counter()
    values: dict[int, str] = {}  # by identity: equal calls share what they return
    lines = []
    for node in graph.nodes:
        if node.op == "output":
            lines.append(f"{indent}return {_argument(node.args[0], names, dims)}")
            continue
        names[node] = _name(node, counts)
        known = node.meta.get("val")
        value = values.get(id(known))
        if value is None:
            value = values[id(known)] = format_value(known, dims)
        if node.op == "placeholder":
            lines.append(f"{indent}%{names[node]} : {value} = input")
        elif node.op == "get_attr":
            lines.append(f"{indent}%{names[node]} : {value} = weight")
        else:
            parts = [_argument(argument, names, dims) for argument in node.args]
            step = node.kwargs.get("step") if node.target in _SCANS else None
            parts += [f"{k}={_argument(v, names, dims)}" for k, v in sorted(node.kwargs.items())
                      if v is not step]  # fmt: skip
            call = f"{_target(node)}({', '.join(parts)})"
            lines.append(f"{indent}%{names[node]} : {value} = {call}")
            if node.op == "call_module":
                inner = module.get_submodule(str(node.target))
                assert isinstance(inner, fx.GraphModule)
                lines.append(_format(inner.graph, inner, dims, indent + "  | ").rstrip("\n"))
            if step is not None:
                inside = ScanStep.parse(str(step)).graph
                lines.append(_format(inside, module, dims, indent + "  | ").rstrip("\n"))
    return "\n".join(lines) + "\n"


def _target(node: fx.Node) -> str:
    return "region" if node.op == "call_module" else _called(node.target)


@functools.cache
def _called(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removesuffix(".default")
    return getattr(target, "__name__", str(target))


def _name(node: fx.Node, counts: Counter[str]) -> str:
    if node.op in ("placeholder", "get_attr"):
        return str(node.target)
    stem = _target(node).split(".")
    name = stem[1] if len(stem) > 1 else stem[0]
    counts[name] += 1
    return f"{name}_{counts[name]}"


def _argument(argument: Any, names: dict[fx.Node, str], dims: dict[str, str]) -> str:
    if isinstance(argument, fx.Node):
        return f"%{names[argument]}"
    if isinstance(argument, (list, tuple)):
        inner = ", ".join(_argument(item, names, dims) for item in argument)
        return f"[{inner}]" if isinstance(argument, list) else f"({inner})"
    if isinstance(argument, str):
        return f'"{argument}"'
    return str(argument).removeprefix("torch.")
