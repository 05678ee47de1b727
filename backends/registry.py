"""Lowerings of a backend: functions from a node to phases, registered by op; and their ledger.

    REGISTRY: Registry[LoweringContext, Phase] = Registry("this CPU")
    lowering = REGISTRY.lowering

    @lowering(gw.rms_norm.default)
    def rms_norm(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]: ...

Several lowerings of one op each need `when`, a predicate that gives the reason to refuse, except
the last one, which takes what is left. A mistake in a registration is an error at import.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import fx

from graphwright.ir.errors import BackendError
from graphwright.ir.memory import MemoryPlan, steps
from graphwright.ir.op import is_gw_op
from graphwright.ir.program import Program

__all__ = ["REGION", "LedgerEntry", "Lowering", "Registry", "arguments"]

REGION = "region"  # the op of a call_module node
OpKey: TypeAlias = Any  # a gw OpOverload or REGION


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _Phase(Protocol):
    """What the ledger says of a phase."""

    @property
    def kernel(self) -> _Named: ...


class _Context(Protocol):
    """What is being lowered."""

    @property
    def program(self) -> Program: ...

    @property
    def plan(self) -> MemoryPlan: ...


C = TypeVar("C", bound=_Context)
P = TypeVar("P", bound=_Phase)


@dataclass(frozen=True)
class Lowering(Generic[C, P]):
    """`when` returns None where the lowering applies, else the reason why not."""

    name: str
    function: Callable[[C, fx.Node], tuple[P, ...]]
    when: Callable[[C, fx.Node], str | None] | None


@dataclass(frozen=True)
class LedgerEntry:
    """Who lowered a step of an entry, into which kernels, and who refused it for which reason."""

    entry: str
    step: str
    op: str
    lowering: str
    kernels: tuple[str, ...]
    refusals: tuple[str, ...]


class Registry(Generic[C, P]):
    """The lowerings of one backend; `machine` names what it compiles for, in errors."""

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._lowerings: dict[OpKey, list[Lowering[C, P]]] = {}

    def lowering(
        self, op: OpKey, *, when: Callable[[C, fx.Node], str | None] | None = None
    ) -> Callable[[Callable[[C, fx.Node], tuple[P, ...]]], Callable[[C, fx.Node], tuple[P, ...]]]:
        """Decorator: registers a function as a lowering of `op` (a gw overload, or REGION).

        Raises BackendError for an op that does not exist, for a second lowering that would never be
        asked, and for a function that does not take (context, node).
        """
        if op != REGION and not (isinstance(op, torch._ops.OpOverload) and is_gw_op(op)):
            raise BackendError(
                f"{op} is no gw op (an overload such as torch.ops.gw.linear.default)."
            )

        def register(
            function: Callable[[C, fx.Node], tuple[P, ...]],
        ) -> Callable[[C, fx.Node], tuple[P, ...]]:
            name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
            known = self._lowerings.setdefault(op, [])
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

    def lowerings_of(self, op: OpKey) -> tuple[Lowering[C, P], ...]:
        """The lowerings of an op in the order they are asked."""
        return tuple(self._lowerings.get(op, ()))

    def lower_entry(self, context: C) -> tuple[list[P], list[LedgerEntry]]:
        """The phases of one entry. Raises BackendError naming every step that nobody lowers."""
        phases: list[P] = []
        ledger: list[LedgerEntry] = []
        missing: list[str] = []
        entry = context.plan.entry
        for node in steps(context.program.graph):
            op = REGION if node.op == "call_module" else node.target
            refusals: list[str] = []
            taken = _first_that_applies(self.lowerings_of(op), context, node, refusals)
            if taken is None:
                reasons = "; ".join(refusals) or "no lowering is registered for it"
                missing.append(f"  '{node.name}' ({op}): {reasons}.")
                continue
            made = taken.function(context, node)
            phases.extend(made)
            kernels = tuple(phase.kernel.name for phase in made)
            ledger.append(
                LedgerEntry(entry, node.name, str(op), taken.name, kernels, tuple(refusals))
            )
        if missing:
            many = f"{len(missing)} steps of" if len(missing) > 1 else "a step of"
            raise BackendError(
                f"{many} '{entry}' cannot be lowered for {self._machine}:\n" + "\n".join(missing)
            )
        return phases, ledger


def _check_signature(name: str, function: Callable[..., Any], expected: tuple[str, ...]) -> None:
    found = tuple(inspect.signature(function).parameters)
    if found != expected:
        raise BackendError(f"'{name}' takes {found}; a lowering takes {expected}.")


def _first_that_applies(
    candidates: Iterable[Lowering[C, P]], context: C, node: fx.Node, refusals: list[str]
) -> Lowering[C, P] | None:
    for candidate in candidates:
        reason = candidate.when(context, node) if candidate.when else None
        if reason is None:
            return candidate
        refusals.append(f"{candidate.name}: {reason}")
    return None


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a gw op's node by name, with the schema's defaults."""
    assert isinstance(node.target, torch._ops.OpOverload)
    given = dict(node.kwargs)
    for position, parameter in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            given[parameter.name] = node.args[position]
        else:
            given.setdefault(parameter.name, parameter.default_value)
    return given
