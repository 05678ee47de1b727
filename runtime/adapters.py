"""Adapters that sequences choose: their names, and how a step is told of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from graphwright.runtime.errors import RequestError
from graphwright.runtime.library import StepBuffers
from graphwright.runtime.plan import Plan
from graphwright.runtime.steps import Step

__all__ = ["adapter_number", "adapter_of_each", "describe_adapters"]


def adapter_number(plan: Plan, name: str | None) -> int | None:
    """The number of the adapter called `name`; None for none. Raises RequestError."""
    if name is None:
        return None
    if name in plan.adapters:
        return plan.adapters.index(name)
    if not plan.adapters:
        raise RequestError(
            f"there is no adapter '{name}': this file has none; compile it with "
            f"--adapter {name}=DIRECTORY."
        )
    near = difflib.get_close_matches(name, plan.adapters, 1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    raise RequestError(
        f"there is no adapter '{name}' in this file{hint}; there are {', '.join(plan.adapters)}."
    )


def adapter_of_each(asked: str | Sequence[str | None] | None, prompts: int) -> list[str | None]:
    """The names of one for all prompts, or of one each. Raises RequestError for another number."""
    if asked is None or isinstance(asked, str):
        return [asked] * prompts
    if len(asked) != prompts:
        raise RequestError(f"{prompts} prompts came with {len(asked)} adapters.")
    return list(asked)


def describe_adapters(step: Step, buffers: StepBuffers, adapters: int) -> None:
    """Writes which of the `adapters` each token and each sampled row of a step has, and whether
    any of them has one."""
    assert buffers.adapters is not None and buffers.row_adapters is not None
    token = row = 0
    for chunk in step.chunks:
        chosen = chunk.sequence.adapter
        number = adapters if chosen is None else chosen
        buffers.adapters[token : token + chunk.count] = number
        buffers.row_adapters[row : row + chunk.rows] = number
        token, row = token + chunk.count, row + chunk.rows
    buffers.batch[7] = any(chunk.sequence.adapter is not None for chunk in step.chunks)
