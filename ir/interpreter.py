"""Running a program on real tensors, node by node: the meaning that every rewrite must keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import fx

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


class _Interpreter(fx.Interpreter):
    def __init__(self, program: Program, cache: WeightSource) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self._program = program
        self._cache = cache

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self._program.weights:
            return self._cache.load(self._program, target)
        return super().get_attr(target, args, kwargs)


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
    interpreter = _Interpreter(program, cache or WeightCache())
    with torch.no_grad():
        result = interpreter.run(*(inputs[name] for name in needed), enable_io_processing=False)
    logits: torch.Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return logits
