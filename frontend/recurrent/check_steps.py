"""Does a module that is traced step by step do the same for a whole sequence?

Nothing else says so: the two are different code of the model. A state space that limits its time
step in one of them and not in the other would be compiled to something that the model never was.
"""

from __future__ import annotations

from typing import Any

import torch

from graphwright.frontend.recurrent.call_arguments import token_axes
from graphwright.frontend.recurrent.held_tensors import held_tensors
from graphwright.frontend.recurrent.module_calls import Call
from graphwright.frontend.recurrent.stepping import SteppedModule
from graphwright.frontend.stateless import float32_parameters
from graphwright.frontend.unchanged import unchanged
from graphwright.ir.errors import FrontendError, PassError
from graphwright.ir.tolerance import check_close

__all__ = ["check_steps"]

_TOKENS = 70  # more than a block of 64, which are computed another way than single tokens


def check_steps(units: list[SteppedModule], sequence: dict[str, list[Call]]) -> None:
    """Compares both ways to run each kind of module, on random inputs and with its own weights.

    sequence: how the modules are called for a sequence. Raises FrontendError where they differ.
    """
    seen: set[Any] = set()
    for unit in units:
        kind = (type(unit.module), tuple(t.shape for t in unit.states.values()))
        if kind not in seen and len(sequence.get(unit.path, ())) == 1:
            seen.add(kind)
            _check(unit, sequence[unit.path][0])


def _check(unit: SteppedModule, call: Call) -> None:
    with torch.no_grad(), unchanged(unit.module), float32_parameters(unit.module, values=True):
        random = torch.Generator().manual_seed(0)
        token = unit.token.args, unit.token.kwargs
        args, kwargs = _example((call.args, call.kwargs), token, random)
        whole = _first(unit.module(*args, **kwargs))
        steps = torch.cat([_first(step) for step in unit.steps(args, kwargs, _TOKENS)], 1)
    try:
        check_close(steps.float(), whole.float())
    except PassError as error:
        raise FrontendError(
            f"'{unit.path}' ({type(unit.module).__name__}) gives other values token by token, as "
            f"it decodes, than for a whole sequence: {error}"
        ) from error


def _example(given: Any, token: Any, random: torch.Generator) -> Any:
    """Tensors with values for those of a call, for one sequence of _TOKENS tokens.

    token: the same of a call for a single token. Integers that it has none of are a mask's.
    """
    if isinstance(given, torch.Tensor):
        sizes, axes = list(given.shape), token_axes(given, None)
        if axes is not None:
            sizes[axes[0]], sizes[axes[1]] = 1, _TOKENS
        if given.is_floating_point():
            return torch.randn(sizes, generator=random)
        if axes is None or given.dtype is torch.bool or not isinstance(token, torch.Tensor):
            return torch.ones(sizes, dtype=given.dtype)
        shape = [_TOKENS if axis == axes[1] else 1 for axis in range(len(sizes))]
        return torch.arange(_TOKENS, dtype=given.dtype).reshape(shape).expand(sizes)  # positions
    if isinstance(given, (list, tuple)):
        tokens = list(token) if isinstance(token, (list, tuple)) else []
        tokens += [None] * (len(given) - len(tokens))
        return type(given)(_example(*each, random) for each in zip(given, tokens, strict=False))
    if isinstance(given, dict):
        known = token if isinstance(token, dict) else {}
        return {name: _example(value, known.get(name), random) for name, value in given.items()}
    return given


def _first(result: Any) -> torch.Tensor:
    """The first tensor of what a module returns: [1, T, ...]."""
    return next(iter(held_tensors(result).values()))
