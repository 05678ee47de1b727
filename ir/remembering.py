"""Evaluating programs of one pipeline: only calls that none before them has made are made."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from graphwright.ir.call_memory import CallMemory, call_parts
from graphwright.ir.interpreter import Step, WeightSource, check_inputs, steps_of, the_logits
from graphwright.ir.program import Program

__all__ = ["RememberingInterpreter"]


@dataclass(frozen=True)
class _Call:
    """A call that is remembered: a name for all but its operands, and which states it writes."""

    name: int
    operands: list[fx.Node]
    written: list[fx.Node]


@dataclass(frozen=True, eq=False)  # one call is not another that looks like it
class _Postponed:
    """A known call that has not written to its states yet."""

    function: Any
    args: Any
    kwargs: Any
    states: frozenset[fx.Node]


class RememberingInterpreter:
    """Gives what `Interpreter` gives, to the bit, for several runs on the same states.

    A state has a number for its content, as other values have. A known call that writes to states
    only changes these numbers; the tensors follow before a call that is not known reads them.
    """

    def __init__(self, program: Program, memory: CallMemory) -> None:
        self._program = program
        self._memory = memory
        self._steps = steps_of(program)
        names = {name for state in program.states for name in state.inputs}
        self._states: dict[fx.Node, Any] = {
            step.node: None
            for step in self._steps
            if step.op == "placeholder" and step.target in names
        }
        self._calls = [self._call(step) for step in self._steps]
        self._postponed: list[_Postponed] = []

    def run(self, inputs: Mapping[str, torch.Tensor], weights: WeightSource) -> torch.Tensor:
        """The logits for `inputs`, among them in each run the same tensors for the states."""
        check_inputs(self._steps, inputs)
        values: dict[fx.Node, Any] = {}
        numbers: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for step, call in zip(self._steps, self._calls, strict=True):
                try:
                    if call is not None:
                        self._remembered(step, call, values, numbers)
                    else:
                        self._other(step, values, numbers, inputs, weights)
                except Exception as error:
                    step.explain(error)
                    raise
                for source in step.dying:
                    del values[source], numbers[source]
        return the_logits(values[self._steps[-1].node])

    def _call(self, step: Step) -> _Call | None:
        if step.op != "call_function":
            return None
        parts = call_parts(step.target, step.args, step.kwargs)
        written = _written(step)
        if any(node not in self._states for node in written):
            raise AssertionError(f"{step.node.format_node()} writes to what is no state")
        if parts is None:
            assert not written
            return None
        return _Call(self._memory.name(parts[0]), parts[1], written)

    def _remembered(
        self, step: Step, call: _Call, values: dict[fx.Node, Any], numbers: dict[fx.Node, Any]
    ) -> None:
        key: Hashable = (call.name, *[numbers[node] for node in call.operands])
        known = self._memory.find(key)
        if known is None:
            self._catch_up(call.operands)
            args, kwargs = map_arg((step.args, step.kwargs), values.__getitem__)
            value = step.target(*args, **kwargs)
            after = tuple([self._memory.fresh() for _ in call.written])
            known = self._memory.keep(key, value, after)
        elif call.written:
            args, kwargs = map_arg((step.args, step.kwargs), values.__getitem__)
            states = frozenset(node for node in call.operands if node in self._states)
            self._postponed.append(_Postponed(step.target, args, kwargs, states))
        values[step.node], numbers[step.node] = known.value, known.number
        for node, number in zip(call.written, known.after, strict=True):
            self._states[node] = numbers[node] = number

    def _catch_up(self, operands: Sequence[fx.Node]) -> None:
        """Makes the postponed calls that the content of these states depends on, in order."""
        needed = {node for node in operands if node in self._states}
        if not needed or not self._postponed:
            return
        made: list[_Postponed] = []
        for call in reversed(self._postponed):
            if call.states & needed:
                needed |= call.states
                made.insert(0, call)
        for call in made:
            call.function(*call.args, **call.kwargs)
            self._postponed.remove(call)

    def _other(
        self,
        step: Step,
        values: dict[fx.Node, Any],
        numbers: dict[fx.Node, Any],
        inputs: Mapping[str, torch.Tensor],
        weights: WeightSource,
    ) -> None:
        node = step.node
        if step.op == "placeholder":
            values[node] = inputs[step.target]
            if node not in self._states:
                numbers[node] = self._memory.number(values[node])
                return
            if self._states[node] is None:
                self._states[node] = self._memory.number(values[node])
            numbers[node] = self._states[node]
        elif step.op == "get_attr":
            values[node] = weights.load(self._program, step.target)
            numbers[node] = self._memory.weight(values[node])
        elif step.op == "call_function":
            args, kwargs = map_arg((step.args, step.kwargs), values.__getitem__)
            values[node] = step.target(*args, **kwargs)
            if step.target is operator.getitem and isinstance(args[0], (tuple, list)):
                numbers[node] = numbers[step.args[0]][args[1]]
            else:
                numbers[node] = self._memory.number(values[node])
        else:
            values[node] = map_arg(step.args[0], values.__getitem__)
            numbers[node] = _structure(step.args[0], numbers)


def _structure(value: Any, numbers: Mapping[fx.Node, Any]) -> Any:
    """The numbers of one node or of several."""
    if isinstance(value, (tuple, list)):
        return tuple(_structure(item, numbers) for item in value)
    return numbers[value]


def _written(step: Step) -> list[fx.Node]:
    """The arguments that the call of `step` writes to."""
    schema = getattr(step.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    written = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = (
                step.args[position] if position < len(step.args) else step.kwargs.get(argument.name)
            )
            if isinstance(given, fx.Node):
                written.append(given)
    return written
