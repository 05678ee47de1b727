"""Running a program on real tensors, node by node: the meaning that every rewrite must keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx
from torch.fx.node import map_arg

from graphwright.ir.errors import PassError
from graphwright.ir.program import Program

__all__ = ["Interpreter", "Step", "WeightCache", "WeightSource", "run_program", "steps_of"]


def _top_k(
    x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch.topk takes any of equal values; here, as everywhere behind, it is the first ones."""
    values, indices = x.sort(dim=dim, descending=largest, stable=True)
    return values.narrow(dim, 0, k).contiguous(), indices.narrow(dim, 0, k).contiguous()


_DEFINED = {torch.ops.aten.topk.default: _top_k}


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


@dataclass
class Step:
    """One node to evaluate, by what its op says; `dying` are values that nobody needs after it.

    op: `placeholder`, `get_attr`, `call_function`, `output`, or `same`: the value is `args[0]`.
    """

    op: str
    node: fx.Node
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dying: list[fx.Node]

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes whose values it reads."""
        if self.op != "same":
            return self.node.all_input_nodes
        read: list[fx.Node] = []
        map_arg(self.args, read.append)
        return read

    def explain(self, error: Exception) -> None:
        """Notes on `error` where it came from."""
        error.add_note(f"while running {self.node.format_node()}\n{self.node.stack_trace or ''}")


class Interpreter:
    """`run_program` for several runs of a program that stays as it is.

    A loop of our own: fx.Interpreter takes longer per node than a small model's tensors do.
    asserts: look at what a captured graph asserts of its sizes. instead: what to call for ops.
    """

    def __init__(
        self,
        program: Program,
        *,
        asserts: bool = True,
        instead: Mapping[Any, Callable[..., Any]] | None = None,
    ) -> None:
        self._program = program
        self._steps = steps_of(program, asserts=asserts)
        for step in self._steps:
            if instead and step.target in instead:
                step.target = instead[step.target]

    def run(
        self, inputs: Mapping[str, torch.Tensor], cache: WeightSource | None = None
    ) -> torch.Tensor:
        """The logits for `inputs`, as `run_program` has them. Values live until their last use."""
        check_inputs(self._steps, inputs)
        cache = cache or WeightCache()
        values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for step in self._steps:
                try:
                    if step.op == "call_function":
                        args = map_arg(step.args, values.__getitem__)
                        kwargs = map_arg(step.kwargs, values.__getitem__) if step.kwargs else {}
                        values[step.node] = step.target(*args, **kwargs)
                    elif step.op == "placeholder":
                        values[step.node] = inputs[step.target]
                    elif step.op == "get_attr":
                        values[step.node] = cache.load(self._program, step.target)
                    else:
                        values[step.node] = map_arg(step.args[0], values.__getitem__)
                except Exception as error:
                    step.explain(error)
                    raise
                for source in step.dying:
                    del values[source]
        return the_logits(values[self._steps[-1].node])


def check_inputs(steps: list[Step], inputs: Mapping[str, torch.Tensor]) -> None:
    """Raises PassError when `inputs` lacks one that the program has."""
    needed = [str(step.target) for step in steps if step.op == "placeholder"]
    missing = [name for name in needed if name not in inputs]
    if missing:
        raise PassError(f"the program needs inputs {needed}; {missing} are not given.")


def the_logits(result: Any) -> torch.Tensor:
    """What a program returns, on its own or as the only one of several."""
    logits: torch.Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return logits


def steps_of(program: Program, *, asserts: bool = True) -> list[Step]:
    """The nodes of `program` in order; those of its regions stand where the region is called."""
    ignored = () if asserts else (torch.ops.aten._assert_scalar.default,)
    steps = [step for step in _steps(program) if step.target not in ignored]
    seen: set[fx.Node] = set()
    for step in reversed(steps):
        if step.op == "output":
            seen.add(step.node)
        step.dying = [source for source in step.inputs if source not in seen]
        seen.update(step.dying)
        if step.node not in seen:
            step.dying.append(step.node)
    return steps


def _steps(program: Program) -> Iterator[Step]:
    for node in program.graph.nodes:
        if node.op != "call_module":
            target = _DEFINED.get(node.target, node.target)  # type: ignore[call-overload]
            yield Step(node.op, node, target, node.args, node.kwargs, [])
            continue
        region = program.module.get_submodule(str(node.target))
        assert isinstance(region, fx.GraphModule)
        arguments = iter(node.args)
        for inner in region.graph.nodes:
            if inner.op == "placeholder":
                yield Step("same", inner, None, (next(arguments),), {}, [])
            elif inner.op == "output":
                yield Step("same", node, None, (inner.args[0],), {}, [])
            else:
                assert inner.op == "call_function"
                yield Step(inner.op, inner, inner.target, inner.args, inner.kwargs, [])
