"""Does a module that is traced step by step do the same for a whole sequence?

Nothing else says so: the two are different code of the model. A state space that limits its time
step in one of them and not in the other would be compiled to something that the model never was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from graphwright.frontend.recurrent.example_inputs import example, first_result
from graphwright.frontend.recurrent.limits import LIMITED_TOKENS, Limit, missing_limits
from graphwright.frontend.recurrent.module_calls import Call
from graphwright.frontend.recurrent.stepping import SteppedModule
from graphwright.frontend.stateless import float32_parameters
from graphwright.frontend.unchanged import unchanged
from graphwright.ir.errors import FrontendError, PassError
from graphwright.ir.tolerance import check_close

__all__ = ["check_steps", "with_limits"]

_TOKENS = 70  # more than a block of 64, which are computed another way than single tokens


def check_steps(units: list[SteppedModule], sequence: dict[str, list[Call]]) -> None:
    """Compares both ways to run each kind of module, on random inputs and with its own weights.

    sequence: how the modules are called for a sequence. Raises FrontendError where they differ.
    """
    seen: set[Any] = set()
    for unit in units:
        kind = _kind(unit)
        if kind not in seen and len(sequence.get(unit.path, ())) == 1:
            seen.add(kind)
            _check(unit, sequence[unit.path][0])


def with_limits(units: list[SteppedModule], sequence: dict[str, list[Call]]) -> list[SteppedModule]:
    """`units`, in which a token's values are limited as those of a sequence are."""
    known: dict[Any, tuple[Limit, ...]] = {}
    found = []
    for unit in units:
        kind = _kind(unit)
        if kind not in known and len(sequence.get(unit.path, ())) == 1:
            known[kind] = _limits(unit, sequence[unit.path][0])
        found.append(replace(unit, limits=known.get(kind, ())))
    return found


def _limits(unit: SteppedModule, call: Call) -> tuple[Limit, ...]:
    with torch.no_grad(), unchanged(unit.module):
        given, token = (call.args, call.kwargs), (unit.token.args, unit.token.kwargs)
        random = torch.Generator().manual_seed(0)
        args, kwargs = example(unit.module, given, token, random, LIMITED_TOKENS)
        return missing_limits(
            unit.module,
            lambda: unit.module(*args, **kwargs),
            lambda: unit.steps(args, kwargs, LIMITED_TOKENS),
        )


def _kind(unit: SteppedModule) -> Any:
    return type(unit.module), tuple(t.shape for t in unit.states.values())


def _check(unit: SteppedModule, call: Call) -> None:
    with torch.no_grad(), unchanged(unit.module), float32_parameters(unit.module, values=True):
        random = torch.Generator().manual_seed(0)
        given, token = (call.args, call.kwargs), (unit.token.args, unit.token.kwargs)
        args, kwargs = example(unit.module, given, token, random, _TOKENS)
        whole = first_result(unit.module(*args, **kwargs))
        steps = torch.cat([first_result(each) for each in unit.steps(args, kwargs, _TOKENS)], 1)
    try:
        check_close(steps.float(), whole.float())
    except PassError as error:
        raise FrontendError(
            f"'{unit.path}' ({type(unit.module).__name__}) gives other values token by token, as "
            f"it decodes, than for a whole sequence: {error}"
        ) from error
