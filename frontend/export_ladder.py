"""torch.export with a length that stays dynamic: what is tried in turn, and what went wrong."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.symbol import SymT, symbol_is_type

from graphwright.frontend.decompositions import decomposed
from graphwright.frontend.gradient_modes import without_idle_switches
from graphwright.frontend.length_constants import (
    constants_differ,
    floats_of_the_length,
    literals,
)
from graphwright.frontend.length_guards import (
    AnotherPathError,
    all_hold,
    branches_of_the_model,
    check_shorter,
    longest_traced,
)
from graphwright.frontend.node_lines import lines_of_the_model
from graphwright.frontend.source_lines import place_of
from graphwright.frontend.stateless import StatelessForward
from graphwright.ir.errors import FrontendError

__all__ = ["BranchError", "Exported", "export_dynamic"]

_LOG = logging.getLogger("graphwright.frontend")
_CONSTANT_LENGTH = ("static shape", "specialized it to be a constant", "not in VR[")


@dataclass(frozen=True)
class Rung:
    """One way to export. least: the shortest sequence the trace may assume."""

    name: str
    least: int
    deferred: bool


_LADDER = (
    Rung("plain export", 2, deferred=False),
    Rung("export with deferred runtime asserts", 2, deferred=True),
    Rung("export for 16 tokens or more", 16, deferred=True),
)


class BranchError(FrontendError):
    """A branch of the model's own code on the length: no way to export gets around it."""


class _NotDynamicError(Exception):
    """One rung's export worked, but not for every length.

    broken: a length for which the model's own code goes another way than the trace. as_a_number:
    the code takes the length for a number, as the end of a loop, which any export does likewise.
    """

    def __init__(self, message: str, broken: int = 0, as_a_number: bool = False) -> None:
        super().__init__(message)
        self.broken, self.as_a_number = broken, as_a_number


@dataclass(frozen=True)
class Exported:
    """A decomposed export and the lengths its trace is sure to be right for (most: None = any).

    because: what kept the first rung from working, if it did not.
    """

    program: ExportedProgram
    rung: str
    least: int
    most: int | None
    because: str = ""


def export_dynamic(forward: StatelessForward, tokens: torch.Tensor, known: str = "") -> Exported:
    """Exports `forward` over `tokens` with dynamic length, by the first rung that works.

    known: the error of an earlier try. When a branch of the model ends this one too, it is raised.
    Raises FrontendError (BranchError) that names what each rung met, and where in the source.
    """
    failures: dict[str, list[str]] = {}
    broken, branches = 0, True
    for rung in _LADDER:
        if rung.least <= broken:  # it would only find the same branch again
            continue
        try:
            return replace(_export(forward, tokens, rung), because=next(iter(failures), ""))
        except FrontendError:
            raise
        except _NotDynamicError as error:
            reason, broken = str(error), max(broken, error.broken)
            branches = branches and error.broken > 0
        except Exception as error:  # noqa: BLE001  (torch.export raises whatever the model raises)
            reason, branches = _explain(error), False
        _LOG.info("%s failed: %s", rung.name, reason)
        if broken and reason in known:
            raise BranchError(known)
        failures.setdefault(reason, []).append(rung.name)
    raise (BranchError if branches else FrontendError)(
        f"{type(forward.model).__name__} cannot be traced for a variable number of tokens."
        + "".join(f"\n  {', '.join(names)}: {reason}" for reason, names in failures.items())
    )


def _export(
    forward: StatelessForward, tokens: torch.Tensor, rung: Rung, decompose: bool = True
) -> Exported:
    length = max(tokens.shape[0], 2 * rung.least)
    repeats = -(-length // tokens.shape[0])
    tokens = tokens.repeat(repeats)[:length]
    args: tuple[torch.Tensor, ...] = (tokens,)
    if forward.takes_positions:
        args = (tokens, torch.arange(length))
    dynamic = tuple({0: Dim.DYNAMIC(min=rung.least)} for _ in args)
    with torch.no_grad(), without_idle_switches(), _quiet(), lines_of_the_model():
        try:
            with (
                floats_of_the_length() as floats,
                branches_of_the_model(place_of, rung.least, length) as branches,
                _no_constant_length(),
            ):
                exported = torch.export.export(
                    forward, args, dynamic_shapes=dynamic, strict=False,
                    prefer_deferred_runtime_asserts_over_guards=rung.deferred,
                )  # fmt: skip
            least, most = _bounds(exported)
            check_shorter(exported, branches, rung.least, least, place_of)
            if least > rung.least:
                raise AnotherPathError(
                    f"its code takes another path for fewer than {least} tokens", 0, own=False
                )
            most = longest_traced(exported, branches, least, most, length, place_of)
        except _NotDynamicError as error:
            if error.as_a_number and all_hold(branches, 2 * _LADDER[-1].least):
                error.broken = _LADDER[-1].least  # the other rungs come to the same line
            raise
        except AnotherPathError as error:
            reason = f"{error}, and one trace must serve every length."
            raise _NotDynamicError(reason, error.length if error.own else 0) from None
        # Deferred asserts are not complete: there, a second trace must always agree.
        if decompose and (rung.deferred or floats & literals(exported)):
            _refuse_constants(exported, forward, tokens, rung)
        if decompose:
            exported = decomposed(exported)
    return Exported(exported, rung.name, least, most)


def _refuse_constants(
    exported: ExportedProgram, forward: StatelessForward, tokens: torch.Tensor, rung: Rung
) -> None:
    """Raises _NotDynamicError when a trace of another length holds other numbers."""
    length = tokens.shape[0] + 7
    longer = tokens.repeat(-(-length // tokens.shape[0]))[:length]
    found = constants_differ(exported, _export(forward, longer, rung, decompose=False).program)
    if found is not None:
        node, other = found
        lines = (node.meta.get("stack_trace") or "").strip().splitlines()[-2:]
        raise _NotDynamicError(
            f"the number of tokens became a constant at {' '.join(x.strip() for x in lines)}: "
            f"'{node.name}' holds {other} when the example has {length} tokens, and another "
            f"number when it has {tokens.shape[0]}."
        )


def _bounds(exported: ExportedProgram) -> tuple[int, int | None]:
    name = exported.graph_signature.user_inputs[0]
    node = next(node for node in exported.graph.nodes if node.name == name)
    length = node.meta["val"].shape[0]
    if not isinstance(length, torch.SymInt):
        raise _NotDynamicError(f"the trace is fixed to {length} tokens.")
    bounds = exported.range_constraints[length.node.expr]
    most = int(bounds.upper) if bounds.upper.is_Integer and bounds.upper < 2**31 else None
    return int(bounds.lower), most


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings, and without the graphs that torch prints before it raises."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _no_constant_length() -> Iterator[None]:
    """While open, a line of the model that makes the number of tokens a constant ends the export:
    what comes after it, as a loop over the tokens, would only be unrolled."""
    depth = len(traceback.extract_stack())
    original: Any = getattr(ShapeEnv, "_set_replacement", None)

    def watch(env: Any, symbol: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(value, "is_number", False) and symbol_is_type(symbol, SymT.SIZE):
            frames = list(traceback.extract_stack())[depth:]
            place = place_of(frames)
            if place:
                reason = f"the number of tokens became a constant{place}."
                as_a_number = any(frame.name == SymNode.guard_int.__name__ for frame in frames)
                raise _NotDynamicError(reason, as_a_number=as_a_number)
        return original(env, symbol, value, *args, **kwargs)

    if original is None:
        yield
        return
    with mock.patch.object(ShapeEnv, "_set_replacement", watch):
        yield


# ---- what went wrong


def _explain(error: Exception) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if any(sign in text for sign in _CONSTANT_LENGTH):
        return "the number of tokens became a constant."
    if "data-dependent" in first:
        first = "its code branches on a value that is computed from the tokens"
    frames = [frame for link in _chain(error) for frame in traceback.extract_tb(link.__traceback__)]
    return f"{first.rstrip('.')}{place_of(frames)}."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
