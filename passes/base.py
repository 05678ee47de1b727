"""The pass base class: what every pass gets for free is here, once.

Timing, counts, text dumps, verification, serial numbers of rewrites (`GRAPHWRIGHT_FUEL`), and the
reasons why something that looks alike was left alone.
"""

from __future__ import annotations

import enum
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from graphwright.ir.errors import GraphwrightError, PassError
from graphwright.ir.printer import format_graph
from graphwright.ir.program import Level, PassRecord, Program
from graphwright.ir.verifier import verify_level

__all__ = ["Check", "Exactness", "Pass", "PassContext", "Stage", "current_context", "run_passes"]


class Stage(enum.Enum):
    """The five stages of the pipeline, in order."""

    NORMALIZE = "normalize"
    ATTENTION = "attention"
    FUSE = "fuse"
    QUANTIZE = "quantize"
    PLAN_MEMORY = "plan_memory"


class Exactness(enum.Enum):
    """What a pass promises about the numbers; names rows of the tolerance table."""

    EXACT = "exact"
    REASSOCIATING = "reassociating"
    APPROXIMATE = "approximate"
    COARSE = "coarse"  # approximate by weights of few bits


class Check(Protocol):
    """Compares what a program computes before and after each pass."""

    def remember(self, program: Program) -> None:
        """`program` is right: this is what the next ones are compared with."""
        ...

    def compare(self, program: Program, exactness: Exactness) -> float:
        """The error against the program seen last as a share of the tolerance, which raises
        PassError above 1. From now on `program` is the one seen last."""
        ...


@dataclass
class PassContext:
    """One run of a pipeline: its options, its fuel, its check and what it dumps.

    on_graph receives the text after each pass.
    """

    check: Check | None = None
    on_graph: Callable[[str, str], None] | None = None
    on_record: Callable[[PassRecord], None] | None = None
    fuel: int | None = None
    misses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    text: str = ""  # the graph after the last pass that changed it

    @staticmethod
    def fuel_from_environment() -> int | None:
        """GRAPHWRIGHT_FUEL as a number of rewrites; None when it is not set."""
        text = os.environ.get("GRAPHWRIGHT_FUEL")
        if text is None:
            return None
        if not text.isdigit():
            raise PassError(f"GRAPHWRIGHT_FUEL must be a number of rewrites, not '{text}'.")
        return int(text)


_CONTEXT: list[PassContext] = []


def current_context() -> PassContext:
    """The context of the running pipeline; outside of one, a fresh context without limits."""
    return _CONTEXT[-1] if _CONTEXT else PassContext()


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of the program. Fields are options; `run` works and counts its rewrites."""

    stage: ClassVar[Stage]
    exactness: ClassVar[Exactness] = Exactness.REASSOCIATING
    after: ClassVar[tuple[type[Pass], ...]] = ()
    reaches: ClassVar[Level | None] = None  # the level the program has once this pass has run
    optional: ClassVar[bool] = True  # False: fuel does not stop it, the program would not run

    @abstractmethod
    def run(self, program: Program) -> int:
        """Rewrites `program` in place. Returns how many rewrites were made; 0: graph untouched."""

    @classmethod
    def title(cls) -> str:
        """The pass's name: `FuseRmsNorm` is `fuse-rms-norm`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()

    def allowed(self) -> bool:
        """Call before each rewrite: spends one unit of fuel, False when none is left."""
        context = current_context()
        if context.fuel is None or not self.optional:
            return True
        if context.fuel <= 0:
            return False
        context.fuel -= 1
        return True

    def miss(self, reason: str) -> None:
        """Records why something similar to this pass's target was left alone."""
        current_context().misses.append(reason)

    def note(self, text: str) -> None:
        """Records how something was done that the graph does not show."""
        current_context().notes.append(text)


def run_passes(
    program: Program, passes: Sequence[Pass], context: PassContext | None = None
) -> Program:
    """Runs `passes` in order over `program`, in place, and returns it; each adds to `program.log`.

    Raises PassError naming the pass that failed and those that ran before it.
    """
    context = context or PassContext(fuel=PassContext.fuel_from_environment())
    _check_order(passes)
    context.text = ""
    _CONTEXT.append(context)
    try:
        if context.check:
            context.check.remember(program)
        for number, step in enumerate(passes):
            _run_one(program, step, number, context)
    finally:
        _CONTEXT.pop()
    return program


def _check_order(passes: Sequence[Pass]) -> None:
    seen: set[type[Pass]] = set()
    present = {type(step) for step in passes}
    for step in passes:
        for earlier in step.after:
            if earlier in present and earlier not in seen:
                raise PassError(f"'{step.title()}' must come after '{earlier.title()}'.")
        seen.add(type(step))


def _run_one(program: Program, step: Pass, number: int, context: PassContext) -> None:
    nodes = len(program.graph.nodes)
    context.misses, context.notes = [], []
    start = time.perf_counter()
    try:
        rewrites = step.run(program)
        seconds = time.perf_counter() - start
        if rewrites:
            program.clean()
        if step.reaches is not None:
            program.level = step.reaches
        verify_level(program)
        verified = None
        if context.check and rewrites:
            verified = context.check.compare(program, step.exactness)
    except GraphwrightError as error:
        done = ", ".join(record.name for record in program.log) or "none"
        raise type(error)(
            f"{error}\n  in pass '{step.title()}'; passes before it: {done}."
        ) from error
    record = PassRecord(
        name=step.title(),
        rewrites=rewrites,
        seconds=seconds,
        nodes_before=nodes,
        nodes_after=len(program.graph.nodes),
        verified=verified,
        misses=list(context.misses),
        notes=list(context.notes),
    )
    program.log.append(record)
    if context.on_graph:
        if rewrites or not context.text:
            context.text = format_graph(program)
        context.on_graph(f"{number:02d}-{step.title()}", context.text)
    if context.on_record:
        context.on_record(record)
