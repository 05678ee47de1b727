"""Evaluating programs of one pipeline: only calls that none before them has made are made."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from graphwright.ir.call_memory import CallMemory, Known
from graphwright.ir.interpreter import Step, WeightSource, check_inputs, steps_of, the_logits
from graphwright.ir.program import Program

__all__ = ["RememberingInterpreter"]


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that is remembered: a name for all but its operands, and which states it writes.

    Nodes are given by the place of their step.
    """

    name: int
    operands: tuple[int, ...]
    written: tuple[int, ...]


@dataclass(frozen=True, eq=False)  # one call is not another that looks like it
class _Postponed:
    """A known call that has not written to its states yet."""

    function: Any
    args: Any
    kwargs: Any
    states: frozenset[int]


class RememberingInterpreter:
    """Gives what `Interpreter` gives, to the bit, for several runs on the same states.

    A state has a number for its content, as other values have. A known call that writes to states
    only changes these numbers; the tensors follow before a call that is not known reads them.
    """

    def __init__(self, program: Program, memory: CallMemory) -> None:
        self._program = program
        self._memory = memory
        self._steps = steps_of(program)
        self._place = {step.node: place for place, step in enumerate(self._steps)}
        self._dying = [[self._place[node] for node in step.dying] for step in self._steps]
        names = {name for state in program.states for name in state.inputs}
        self._states: dict[int, Any] = {
            place: None
            for place, step in enumerate(self._steps)
            if step.op == "placeholder" and step.target in names
        }
        self._calls = [self._call(step) for step in self._steps]
        self._postponed: list[_Postponed] = []
        self._values: list[Any] = []
        self._numbers: list[Any] = []

    def run(self, inputs: Mapping[str, torch.Tensor], weights: WeightSource) -> torch.Tensor:
        """The logits for `inputs`, among them in each run the same tensors for the states."""
        check_inputs(self._steps, inputs)
        values = self._values = [None] * len(self._steps)
        numbers = self._numbers = [None] * len(self._steps)
        find = self._memory.find
        with torch.no_grad():
            for place, (call, dying) in enumerate(zip(self._calls, self._dying, strict=True)):
                try:
                    if call is None:
                        self._other(place, inputs, weights)
                    else:
                        key = (call.name, *[numbers[i] for i in call.operands])
                        known = find(key)
                        if known is None:
                            known = self._make(place, call, key)
                        elif call.written:
                            self._postpone(place, call)
                        values[place], numbers[place] = known.value, known.number
                        for state, number in zip(call.written, known.after, strict=True):
                            self._states[state] = numbers[state] = number
                except Exception as error:
                    self._steps[place].explain(error)
                    raise
                for source in dying:
                    values[source] = None
        logits = the_logits(values[-1])
        self._values = []
        return logits

    def _call(self, step: Step) -> _Call | None:
        if step.op != "call_function":
            return None
        parts = self._memory.parts(step.node, step.target, step.args, step.kwargs)
        written = tuple(self._place[node] for node in _written(step))
        if any(state not in self._states for state in written):
            raise AssertionError(f"{step.node.format_node()} writes to what is no state")
        if parts is None:
            assert not written
            return None
        operands = tuple(self._place[node] for node in parts[1])
        return _Call(self._memory.name(parts[0]), operands, written)

    def _make(self, place: int, call: _Call, key: Hashable) -> Known:
        self._catch_up(call.operands)
        step = self._steps[place]
        args, kwargs = self._arguments(step)
        value = step.target(*args, **kwargs)
        after = tuple([self._memory.fresh() for _ in call.written])
        return self._memory.keep(key, value, after)

    def _postpone(self, place: int, call: _Call) -> None:
        step = self._steps[place]
        args, kwargs = self._arguments(step)
        states = frozenset(operand for operand in call.operands if operand in self._states)
        self._postponed.append(_Postponed(step.target, args, kwargs, states))

    def _arguments(self, step: Step) -> Any:
        return map_arg((step.args, step.kwargs), lambda node: self._values[self._place[node]])

    def _catch_up(self, operands: Sequence[int]) -> None:
        """Makes the postponed calls that the content of these states depends on, in order."""
        needed = {operand for operand in operands if operand in self._states}
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

    def _other(self, place: int, inputs: Mapping[str, torch.Tensor], weights: WeightSource) -> None:
        step, memory = self._steps[place], self._memory
        value: Any
        number: Any
        if step.op == "placeholder":
            value = inputs[step.target]
            if place not in self._states:
                number = memory.number(value)
            else:
                if self._states[place] is None:
                    self._states[place] = memory.number(value)
                number = self._states[place]
        elif step.op == "get_attr":
            value = weights.load(self._program, step.target)
            number = memory.weight(value)
        elif step.op == "call_function":
            args, kwargs = self._arguments(step)
            value = step.target(*args, **kwargs)
            if step.target is operator.getitem and isinstance(args[0], (tuple, list)):
                number = self._numbers[self._place[step.args[0]]][args[1]]
            else:
                number = memory.number(value)
        else:
            value = map_arg(step.args[0], lambda node: self._values[self._place[node]])
            number = _structure(step.args[0], lambda node: self._numbers[self._place[node]])
        self._values[place], self._numbers[place] = value, number


def _structure(value: Any, number: Callable[[fx.Node], Any]) -> Any:
    """The numbers of one node or of several."""
    if isinstance(value, (tuple, list)):
        return tuple(_structure(item, number) for item in value)
    return number(value)


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
