"""Running a program on real tensors, node by node: the meaning that every rewrite must keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx
from torch.fx.node import map_arg

from graphwright.ir.errors import PassError
from graphwright.ir.program import Program

__all__ = ["WeightCache", "WeightSource", "run_program"]


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
    needed = [str(node.target) for node in program.graph.nodes if node.op == "placeholder"]
    missing = [name for name in needed if name not in inputs]
    if missing:
        raise PassError(f"the program needs inputs {needed}; {missing} are not given.")
    results = _run(program, [inputs[name] for name in needed], cache or WeightCache())
    logits: torch.Tensor = results[0] if isinstance(results, (tuple, list)) else results
    return logits


def _run(program: Program, inputs: Sequence[torch.Tensor], cache: WeightSource) -> Any:
    """What the output node returns. Values live until their last use.

    A loop of our own: fx.Interpreter takes longer per node than a small model's tensors do.
    """
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    dying = _last_uses(program.graph)
    with torch.no_grad():
        for node in program.graph.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "output":
                return args[0]
            try:
                if node.op == "placeholder":
                    values[node] = next(given)
                elif node.op == "get_attr":
                    values[node] = cache.load(program, str(node.target))
                else:
                    function = node.target
                    if node.op == "call_module":
                        function = program.module.get_submodule(str(node.target))
                    values[node] = function(*args, **kwargs)
            except Exception as error:
                error.add_note(f"while running {node.format_node()}\n{node.stack_trace or ''}")
                raise
            for source in dying.get(node, ()):
                del values[source]
    raise PassError("the program has no output node.")


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """By node: the values that nobody needs once it has run."""
    dying: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        last = [source for source in node.all_input_nodes if source not in seen]
        dying[node] = last if node.users else [*last, node]
        seen.update(last)
    return dying
