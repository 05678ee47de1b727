"""Running a program on real tensors, node by node: the meaning that every rewrite must keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx
from torch.fx.node import map_arg

from graphwright.ir.errors import PassError
from graphwright.ir.program import Program

__all__ = ["Interpreter", "WeightCache", "WeightSource", "run_program"]


class WeightSource(Protocol):
    """Where the interpreter gets the values of weights from."""

    def load(self, program: Program, name: str) -> torch.Tensor:
        """The tensor of `program.weights[name]`."""
        ...


class WeightCache:
    """Loaded weights, kept for as long as the cache lives, by identity of the weight."""

    def __init__(self) -> None:
        self._loaded: dict[int, tuple[object, torch.Tensor]] = {}

    def load(self, program: Program, name: str) -> torch.Tensor:
        """The tensor of `program.weights[name]`."""
        weight = program.weights[name]
        if id(weight) not in self._loaded:
            self._loaded[id(weight)] = (weight, weight.load())
        return self._loaded[id(weight)][1]


def run_program(
    program: Program, inputs: Mapping[str, torch.Tensor], cache: WeightSource | None = None
) -> torch.Tensor:
    """Runs the graph on `inputs` (one tensor per placeholder, by name) and returns the logits.

    State tensors among the inputs are modified in place, as the engine's are.
    """
    return Interpreter(program).run(inputs, cache)


class Interpreter:
    """`run_program` for several runs of a program that stays as it is.

    A loop of our own: fx.Interpreter takes longer per node than a small model's tensors do.
    asserts: look at what a captured graph asserts of its sizes.
    """

    def __init__(self, program: Program, *, asserts: bool = True) -> None:
        self._program = program
        ignored = () if asserts else (torch.ops.aten._assert_scalar.default,)
        self._nodes = [node for node in program.graph.nodes if node.target not in ignored]
        self._functions: list[Any] = [
            program.module.get_submodule(str(node.target))
            if node.op == "call_module"
            else node.target
            for node in self._nodes
        ]
        self._dying = _last_uses(self._nodes)

    def run(
        self, inputs: Mapping[str, torch.Tensor], cache: WeightSource | None = None
    ) -> torch.Tensor:
        """The logits for `inputs`, as `run_program` has them. Values live until their last use."""
        needed = [str(node.target) for node in self._nodes if node.op == "placeholder"]
        missing = [name for name in needed if name not in inputs]
        if missing:
            raise PassError(f"the program needs inputs {needed}; {missing} are not given.")
        cache = cache or WeightCache()
        values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node, function, dying in zip(
                self._nodes, self._functions, self._dying, strict=True
            ):
                try:
                    if node.op == "placeholder":
                        values[node] = inputs[function]
                    elif node.op == "get_attr":
                        values[node] = cache.load(self._program, function)
                    elif node.op == "output":
                        result: Any = map_arg(node.args[0], values.__getitem__)
                    else:
                        args = map_arg(node.args, values.__getitem__)
                        values[node] = function(*args, **map_arg(node.kwargs, values.__getitem__))
                except Exception as error:
                    error.add_note(f"while running {node.format_node()}\n{node.stack_trace or ''}")
                    raise
                for source in dying:
                    del values[source]
        logits: torch.Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return logits


def _last_uses(nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """By node: the values that nobody needs once it has run."""
    dying: list[list[fx.Node]] = []
    seen: set[fx.Node] = set()
    for node in reversed(nodes):
        last = [source for source in node.all_input_nodes if source not in seen]
        dying.append([] if node.op == "output" else last if node.users else [*last, node])
        seen.update(last)
    return dying[::-1]
