"""Modules that carry a state, traced as if every token were a sequence of its own.

A decoder's modules take [1, T, ...]. Called with [T, 1, ...] and its state, such a module does what
it does for a single token, T times beside each other. What the states are before each token, and
after it, is marked in the trace; `form_scans` makes a recurrence over the tokens of it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

from graphwright.frontend.recurrent.call_arguments import by_name, token_axes
from graphwright.frontend.recurrent.decoding_run import BATCH
from graphwright.frontend.recurrent.held_tensors import Path, held_tensors, with_tensors
from graphwright.frontend.recurrent.limits import Limit, Limited
from graphwright.frontend.recurrent.module_calls import Call
from graphwright.frontend.recurrent.state_markers import READ, WRITE
from graphwright.ir.errors import FrontendError
from graphwright.ir.layout import size_of

__all__ = ["SteppedModule", "stepped"]

_Change = Callable[[torch.Tensor, int, int], torch.Tensor]
"""From a tensor, its batch axis and its token axis to what one token is given of it."""


@dataclass(frozen=True)
class SteppedModule:
    """A module and how it is called for one token.

    prompt, token: its call for a prompt, and for the token after it. caches, attributes:
    what holds states, by the model's argument, or by module and attribute. states: by their paths,
    the tensors that it carries, as the prompt of BATCH sequences left them. initial: what each is
    before the first token. limits: of a token's values, which only the code for a sequence has.
    """

    path: str
    module: nn.Module
    prompt: Call
    token: Call
    caches: Mapping[str, Any]
    attributes: Mapping[tuple[str, str], Any]
    states: Mapping[Path, torch.Tensor]
    initial: Mapping[Path, float]
    limits: tuple[Limit, ...] = ()

    def call(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `original`, the module's forward, returns for a sequence: tokens side by side."""
        given = self._by_name(original, args, kwargs)
        rows: list[torch.Tensor] = []

        def side_by_side(value: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
            rows.append(value.transpose(batch, tokens))
            return rows[-1]

        arguments = self._arguments(original, given, side_by_side)
        if not rows:
            raise FrontendError(f"'{self.path}' is called without a value for each token.")
        old = {
            path: READ(rows[0], list(t.shape[1:]), t.dtype, self.initial[path])
            for path, t in self.states.items()
        }
        states = {path: value for path, (value, _) in old.items()}
        result, new = self._one_token(original, arguments, states)
        return self._result(result, self.prompt.result, new, [handle for _, handle in old.values()])

    def steps(self, args: tuple[Any, ...], kwargs: dict[str, Any], count: int) -> Iterator[Any]:
        """What the module's forward returns for each of `count` tokens, one after the other."""
        original = type(self.module).forward
        given = self._by_name(original, args, kwargs)
        states = {
            path: torch.full((1, *t.shape[1:]), self.initial[path], dtype=t.dtype)
            for path, t in self.states.items()
        }
        for number in range(count):
            of_token = functools.partial(_of_token, number=number)
            arguments = self._arguments(original, given, of_token)
            result, new = self._one_token(original, arguments, states)
            states = dict(zip(states, new, strict=True))
            yield result

    def _one_token(
        self, original: Any, arguments: dict[str, Any], states: Mapping[Path, torch.Tensor]
    ) -> tuple[Any, list[torch.Tensor]]:
        """The forward's result, and the states after it."""
        with self._state(states) as caches:
            clones = {id(self.caches[name]): clone for name, clone in caches.items()}
            arguments = {name: clones.get(id(value), value) for name, value in arguments.items()}
            parameters = self._signature(original).parameters.values()
            first = [arguments.pop(p.name) for p in parameters
                     if p.kind is p.POSITIONAL_ONLY and p.name in arguments]  # fmt: skip
            with Limited(self.limits) if self.limits else nullcontext():
                result = original(self.module, *first, **arguments)
            return result, self._new_states(caches)

    def _signature(self, original: Any) -> inspect.Signature:
        return inspect.signature(functools.partial(original, self.module))

    def _by_name(self, original: Any, args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
        return by_name(self._signature(original), args, kwargs)

    def _arguments(
        self, original: Any, given: Mapping[str, Any], change: _Change
    ) -> dict[str, Any]:
        """The arguments of a call for a token, with `given` tensors, each by `change`."""
        prompt = self._by_name(original, self.prompt.args, self.prompt.kwargs)
        token = self._by_name(original, self.token.args, self.token.kwargs)
        return {
            name: self._argument(value, given.get(name), prompt.get(name), change)
            for name, value in token.items()
        }

    def _argument(self, token: Any, given: Any, prompt: Any, change: _Change) -> Any:
        if any(token is cache for cache in self.caches.values()):
            return token
        if isinstance(token, torch.Tensor):
            if not isinstance(given, torch.Tensor) or not isinstance(prompt, torch.Tensor):
                return given  # without a cache the model has none to give, as a mask
            axes = token_axes(prompt, token)
            return given if axes is None else change(given, *axes)
        if isinstance(token, (list, tuple)) and type(given) is type(token):
            parts = zip(token, given, prompt, strict=True)
            return type(token)([self._argument(*each, change) for each in parts])
        return token

    @contextmanager
    def _state(self, values: Mapping[Path, torch.Tensor]) -> Iterator[dict[str, Any]]:
        """While open, the module's attributes hold `values`. Yields caches that hold them."""
        caches = {}
        for name, cache in self.caches.items():
            fixed = {path: torch.zeros(tuple(t.shape), dtype=t.dtype)
                     for path, t in held_tensors(cache).items()
                     if not t.dim() or t.shape[0] != BATCH}  # fmt: skip
            own = {path[1:]: value for path, value in values.items() if path[:1] == (name,)}
            caches[name] = with_tensors(cache, fixed | own)
        with ExitStack() as stack:
            for holder, attribute, _ in self._attributes():
                own = {path[3:]: value for path, value in values.items()
                       if path[:3] == ("", holder, attribute)}  # fmt: skip
                module = self._holder(holder)
                value = with_tensors(self.attributes[holder, attribute], own)
                stack.enter_context(mock.patch.dict(vars(module), {attribute: value}))
            yield caches

    def _attributes(self) -> list[tuple[str, str, Path]]:
        return [(path[1], path[2], path[3:]) for path in self.states if path[0] == ""]

    def _holder(self, name: str) -> nn.Module:
        inner = name[len(self.path) :].lstrip(".") if self.path else name
        return self.module.get_submodule(inner)

    def _new_states(self, caches: Mapping[str, Any]) -> list[torch.Tensor]:
        found = []
        for path in self.states:
            name, *rest = path
            if name:
                held = held_tensors(caches[name])
                value = held.get(tuple(rest))
            else:
                holder, attribute, *inner = rest
                value = held_tensors(vars(self._holder(holder)).get(attribute)).get(tuple(inner))
            if value is None:
                raise FrontendError(f"'{self.path}' does not keep its state {_name(path)}.")
            found.append(value)
        return found

    def _result(
        self, result: Any, prompt: Any, new: list[torch.Tensor], handles: list[torch.Tensor]
    ) -> Any:
        """The result for a sequence; its first tensor carries the marks of the states."""
        if isinstance(result, torch.Tensor):
            axes = token_axes(prompt, None)
            if axes is None:
                return result
            if result.dim() != prompt.dim() or size_of(result.shape[axes[1]]) != 1:
                raise FrontendError(
                    f"'{self.path}' returns {list(map(size_of, result.shape))} for a token of each "
                    f"of several sequences: it mixes them, and cannot run for all tokens at once."
                )
            return WRITE(result, new, handles).transpose(*axes)
        if isinstance(result, (list, tuple)):
            parts = []
            for own, known in zip(result, prompt, strict=True):
                parts.append(self._result(own, known, new, handles))
                if isinstance(own, torch.Tensor) and parts[-1] is not own:
                    new, handles = [], []
            return type(result)(parts)
        if isinstance(result, dict):
            parts = self._result(list(result.values()), list(prompt.values()), new, handles)
            changed = copy.copy(result)
            for name, part in zip(result, parts, strict=True):
                changed[name] = part
            return changed
        return result


@contextmanager
def stepped(modules: list[SteppedModule]) -> Iterator[None]:
    """While open, these modules do what they are given step by step."""
    by_dict = {id(vars(each.module)): each for each in modules}
    with ExitStack() as stack:
        for kind in {type(each.module) for each in modules}:
            forward = _stepped_forward(kind.forward, by_dict)
            stack.enter_context(mock.patch.object(kind, "forward", forward))
        yield


def _of_token(value: torch.Tensor, batch: int, tokens: int, *, number: int) -> torch.Tensor:
    return value.narrow(tokens, number, 1)


def _stepped_forward(original: Any, by_dict: Mapping[int, SteppedModule]) -> Any:
    @functools.wraps(original)
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        unit = by_dict.get(id(vars(module)))
        if unit is None:
            return original(module, *args, **kwargs)
        return unit.call(original, args, kwargs)

    return forward


def _name(path: Path) -> str:
    return "'" + ".".join(str(part) for part in path if part != "") + "'"
