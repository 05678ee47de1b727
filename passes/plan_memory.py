"""Planning the arena: a place for every computed value, shared by values never alive together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.arena import Lifetime, place
from graphwright.ir.errors import PassError
from graphwright.ir.layout import row_axis, row_size
from graphwright.ir.memory import (
    MemoryPlan,
    buffer_name,
    operands,
    result_of,
    results,
    scratch,
    steps,
)
from graphwright.ir.program import Level, Program
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.verify_plan import verify_plan

__all__ = ["PlanMemory", "plan_entry"]


@dataclass(frozen=True)
class PlanMemory(Pass):
    """program → program.plans: one arena per entry, for its most tokens.   Leaves: inputs, states
    and the logits, which belong to the caller.   Refuses: a shape operation that is no row view.

    decode_tokens and chunk: the most tokens of a step of the entries `decode` and `prefill`.
    """

    decode_tokens: int = 8
    chunk: int = 512

    stage: ClassVar[Stage] = Stage.PLAN_MEMORY
    exactness: ClassVar[Exactness] = Exactness.EXACT
    reaches: ClassVar[Level | None] = Level.PLANNED
    optional: ClassVar[bool] = False

    def run(self, program: Program) -> int:
        plans = {
            "decode": plan_entry(program.graph, "decode", self.decode_tokens),
            "prefill": plan_entry(program.graph, "prefill", self.chunk),
        }
        for plan in plans.values():
            verify_plan(program.graph, plan)
        changed = sum(program.plans.get(name) != plan for name, plan in plans.items())
        program.plans = plans
        return changed


def plan_entry(graph: fx.Graph, entry: str, tokens: int) -> MemoryPlan:
    """A place for every value of `graph` in a step of at most `tokens` tokens."""
    placed, size = place(_lifetimes(graph, tokens))
    return MemoryPlan(entry, tokens, tokens, size, tuple(placed))


def _lifetimes(graph: fx.Graph, tokens: int) -> list[Lifetime]:
    """Every value and scratch that needs a place, from its first step to the last that reads it."""
    logits = result_of(graph)
    sizes: dict[str, int] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, step in enumerate(steps(graph)):
        for view in operands(step):
            if view.base.op != "placeholder":
                last[buffer_name(view.base)] = number
        for name, value in results(step).items():
            sizes[name] = tokens * _row_bytes(step, value)
            first.setdefault(name, number)  # there already, where the step works in place
            last[name] = number
        for need in scratch(step, tokens):
            sizes[need.name] = tokens * need.row_bytes
            first.setdefault(need.name, number)
            last[need.name] = number
    return [
        Lifetime(name, size, first[name], last[name])
        for name, size in sizes.items()
        if name != logits
    ]


def _row_bytes(step: fx.Node, value: Any) -> int:
    if not isinstance(value, torch.Tensor) or row_axis(value) is None:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else value
        raise PassError(
            f"'{step.name}' computes a value of shape {shape}, which has no row axis: "
            "one symbolic size, with only ones before it."
        )
    return row_size(value) * value.dtype.itemsize
