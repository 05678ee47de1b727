"""Lowerings: functions from a node to phases, registered by op; and the ledger of what they did.

    @lowering(gw.rms_norm.default)
    def rms_norm(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]: ...

Several lowerings of one op each need `when`, a predicate that gives the reason to refuse, except
the last one, which takes what is left. A mistake in a registration is an error at import.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from graphwright.backends.tvm.context import LoweringContext
from graphwright.backends.tvm.phases import Phase
from graphwright.ir.errors import BackendError
from graphwright.ir.memory import steps
from graphwright.ir.op import is_gw_op

__all__ = ["REGION", "LedgerEntry", "Lowering", "lower_entry", "lowering", "lowerings_of"]

REGION = "region"  # the op of a call_module node

LoweringFunction: TypeAlias = Callable[[LoweringContext, fx.Node], tuple[Phase, ...]]
Predicate: TypeAlias = Callable[[LoweringContext, fx.Node], str | None]
OpKey: TypeAlias = Any  # a gw OpOverload or REGION


@dataclass(frozen=True)
class Lowering:
    """`when` returns None where the lowering applies, else the reason why not."""

    name: str
    function: LoweringFunction
    when: Predicate | None


@dataclass(frozen=True)
class LedgerEntry:
    """Who lowered a step of an entry, into which kernels, and who refused it for which reason."""

    entry: str
    step: str
    op: str
    lowering: str
    kernels: tuple[str, ...]
    refusals: tuple[str, ...]


_LOWERINGS: dict[OpKey, list[Lowering]] = {}


def lowering(
    op: OpKey, *, when: Predicate | None = None
) -> Callable[[LoweringFunction], LoweringFunction]:
    """Decorator: registers a function as a lowering of `op` (a gw overload, or REGION).

    Raises BackendError for an op that does not exist, for a second lowering that would never be
    asked, and for a function that does not take (context, node).
    """
    if op != REGION and not (isinstance(op, torch._ops.OpOverload) and is_gw_op(op)):
        raise BackendError(f"{op} is no gw op (an overload such as torch.ops.gw.linear.default).")

    def register(function: LoweringFunction) -> LoweringFunction:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        known = _LOWERINGS.setdefault(op, [])
        if known and known[-1].when is None:
            raise BackendError(
                f"'{name}' would never lower {op}: '{known[-1].name}' takes every node. "
                "Register it earlier, or give the other one a predicate."
            )
        if any(each.name == name for each in known):
            raise BackendError(f"'{name}' is registered twice for {op}.")
        _check_signature(name, function, ("context", "node"))
        if when is not None:
            _check_signature(f"the predicate of {name}", when, ("context", "node"))
        known.append(Lowering(name, function, when))
        return function

    return register


def _check_signature(name: str, function: Callable[..., Any], expected: tuple[str, ...]) -> None:
    found = tuple(inspect.signature(function).parameters)
    if found != expected:
        raise BackendError(f"'{name}' takes {found}; a lowering takes {expected}.")


def lowerings_of(op: OpKey) -> tuple[Lowering, ...]:
    """The lowerings of an op in the order they are asked."""
    return tuple(_LOWERINGS.get(op, ()))


def lower_entry(context: LoweringContext) -> tuple[list[Phase], list[LedgerEntry]]:
    """The phases of one entry. Raises BackendError naming every step that nobody lowers."""
    phases: list[Phase] = []
    ledger: list[LedgerEntry] = []
    missing: list[str] = []
    for node in steps(context.program.graph):
        op = REGION if node.op == "call_module" else node.target
        refusals: list[str] = []
        taken = _first_that_applies(lowerings_of(op), context, node, refusals)
        if taken is None:
            reasons = "; ".join(refusals) or "no lowering is registered for it"
            missing.append(f"  '{node.name}' ({op}): {reasons}.")
            continue
        made = taken.function(context, node)
        phases.extend(made)
        kernels = tuple(phase.kernel.name for phase in made)
        ledger.append(
            LedgerEntry(
                context.plan.entry, node.name, str(op), taken.name, kernels, tuple(refusals)
            )
        )
    if missing:
        raise BackendError(_sentence(context.plan.entry, missing))
    return phases, ledger


def _first_that_applies(
    candidates: Iterable[Lowering], context: LoweringContext, node: fx.Node, refusals: list[str]
) -> Lowering | None:
    for candidate in candidates:
        reason = candidate.when(context, node) if candidate.when else None
        if reason is None:
            return candidate
        refusals.append(f"{candidate.name}: {reason}")
    return None


def _sentence(entry: str, missing: list[str]) -> str:
    many = f"{len(missing)} steps of" if len(missing) > 1 else "a step of"
    return f"{many} '{entry}' cannot be lowered for this CPU:\n" + "\n".join(missing)
