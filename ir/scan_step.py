"""One token of a recurrence: a small graph from the state before to the state after, as text.

A recurrence is an op with this text as a parameter (`gw.scan_along_tokens`), so that a program is a
graph of ops as before, and equal recurrences have equal texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["ScanState", "ScanStep"]


@dataclass(frozen=True)
class ScanState:
    """A float32 tensor of fixed size that a sequence carries from token to token.

    sizes: without the token axis. initial: what each element is before the first token.
    """

    sizes: tuple[int, ...]
    initial: float = 0.0

    @property
    def count(self) -> int:
        """Its elements."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class ScanStep:
    """The graph of one token, every value with a leading axis of size 1 in place of the tokens.

    Its placeholders are the states, then `rows` values of the token, then weights; it returns the
    new states, then the results of the token. Ops are those that regions are made of: pointwise,
    moves of elements, reductions. Every node has meta["val"], a tensor without values.
    """

    graph: fx.Graph
    states: tuple[ScanState, ...]
    rows: int

    @property
    def placeholders(self) -> list[fx.Node]:
        """States, rows and weights, in this order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def new_states(self) -> list[fx.Node]:
        """What each state is after the token."""
        return self._returned[: len(self.states)]

    @property
    def results(self) -> list[fx.Node]:
        """What the token gives."""
        return self._returned[len(self.states) :]

    @property
    def state_size(self) -> int:
        """Elements of all states of one sequence."""
        return sum(state.count for state in self.states)

    @property
    def result_size(self) -> int:
        """Elements of all results of one token."""
        return sum(node.meta["val"].numel() for node in self.results)

    @property
    def _returned(self) -> list[fx.Node]:
        last: Any = self.graph.output_node().args[0]
        return list(last)

    def initial(self) -> torch.Tensor:
        """float32 [state_size]: the states before the first token, one behind the other."""
        parts = [torch.full((state.count,), state.initial) for state in self.states]
        return torch.cat(parts) if parts else torch.zeros(0)

    def run(
        self, state: torch.Tensor, rows: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One sequence, token after token.

        state [state_size]; rows: each [T, ...], as the placeholder is for one token; weights as
        their placeholders. Returns the state after the last token and the results [T, result_size].
        """
        module = fx.GraphModule(torch.nn.Module(), self.graph)
        results = []
        for t in range(rows[0].shape[0]):
            parts = torch.split(state, [each.count for each in self.states])
            old = [p.reshape(1, *s.sizes) for p, s in zip(parts, self.states, strict=True)]
            found = module(*old, *(row[t : t + 1] for row in rows), *weights)
            new, made = found[: len(old)], found[len(old) :]
            state = torch.cat([each.reshape(-1).float() for each in new])
            results.append(torch.cat([each.reshape(-1).float() for each in made]))
        if not results:
            return state, state.new_zeros(0, self.result_size)
        return state, torch.stack(results)

    @classmethod
    def of(
        cls, run: Callable[..., Sequence[Any]], states: Sequence[ScanState],
        rows: Sequence[torch.Tensor], weights: Sequence[torch.Tensor] = (),
    ) -> ScanStep:  # fmt: skip
        """The step that `run` is, in calls of aten ops: from states, rows, each as it is for one
        token ([1, ...]), and weights to the new states and the results."""
        graph, nodes = fx.Graph(), []
        values = [torch.zeros(1, *state.sizes) for state in states] + [*rows, *weights]
        for number, value in enumerate(values):
            nodes.append(graph.placeholder(f"input_{number}"))
            nodes[-1].meta["val"] = value
        tracer = fx.proxy.GraphAppendingTracer(graph)
        found = run(*(fx.Proxy(node, tracer) for node in nodes))
        graph.output(tuple(each.node for each in found))
        return cls(graph, tuple(states), len(rows))

    # ---- as text

    def text(self) -> str:
        """All of it. Equal texts mean equal steps."""
        numbers: dict[fx.Node, int] = {}
        nodes: list[Any] = []
        for node in self.graph.nodes:
            if node.op == "output":
                break
            numbers[node] = len(numbers)
            if node.op == "placeholder":
                value = node.meta["val"]
                nodes.append([list(value.shape), _plain(value.dtype)])
            else:
                args = fx.node.map_arg(node.args, lambda n: _Reference(numbers[n]))
                kwargs = fx.node.map_arg(node.kwargs, lambda n: _Reference(numbers[n]))
                nodes.append([str(node.target), _plain(args), _plain(kwargs)])
        found = {
            "states": [[list(state.sizes), state.initial] for state in self.states],
            "rows": self.rows,
            "nodes": nodes,
            "returns": [numbers[node] for node in self._returned],
        }
        return json.dumps(found, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> ScanStep:
        """From `text()`. The graph is shared: do not change it."""
        return _parse(text)


class _Reference(int):
    """The number of a node."""


@lru_cache(maxsize=256)
def _parse(text: str) -> ScanStep:
    found = json.loads(text)
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    mode = FakeTensorMode()
    kinds = iter(["state"] * len(found["states"]) + ["row"] * found["rows"])
    for number, each in enumerate(found["nodes"]):
        if len(each) == 2:
            sizes, dtype = each
            node = graph.placeholder(f"{next(kinds, 'weight')}_{number}")
            with mode:
                node.meta["val"] = torch.empty(sizes, dtype=_value(dtype, nodes))
        else:
            name, args, kwargs = each
            target = _overload(name)
            node = graph.call_function(target, tuple(_value(args, nodes)), _value(kwargs, nodes))
            with mode:
                values = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
                node.meta["val"] = target(*values[0], **values[1])
        nodes.append(node)
    graph.output(tuple(nodes[number] for number in found["returns"]))
    states = tuple(ScanState(tuple(sizes), float(initial)) for sizes, initial in found["states"])
    return ScanStep(graph, states, found["rows"])


def _overload(name: str) -> Any:
    namespace, op, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), op), overload)


def _plain(value: Any) -> Any:
    """For JSON: references to nodes and types are marked, all else is as it is."""
    if isinstance(value, _Reference):
        return {"node": int(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {"given": {key: _plain(each) for key, each in value.items()}}
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    assert value is None or isinstance(value, (bool, int, float, str)), f"{value!r} in a step"
    return value


def _value(plain: Any, nodes: Sequence[fx.Node]) -> Any:
    if isinstance(plain, list):
        return [_value(each, nodes) for each in plain]
    if not isinstance(plain, dict):
        return plain
    if "node" in plain:
        return nodes[plain["node"]]
    if "dtype" in plain:
        return getattr(torch, plain["dtype"])
    if "number" in plain:
        return float(plain["number"])
    return {key: _value(each, nodes) for key, each in plain["given"].items()}
