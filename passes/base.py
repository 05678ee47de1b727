"""The pass base class: what every pass gets for free is here, once.

Serial numbers of rewrites (`GRAPHWRIGHT_FUEL`), and the reasons why something that looks alike was
left alone; running.py times, counts, prints and verifies.
"""

from __future__ import annotations

import enum
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from graphwright.ir.errors import PassError
from graphwright.ir.program import Level, PassRecord, Program

__all__ = ["Check", "Exactness", "Pass", "PassContext", "Stage", "current_context", "in_context"]


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
    ASKED = "asked"  # none: the user wants another model


class Check(Protocol):
    """Compares what a program computes before and after passes."""

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

    on_graph receives the text after each pass, on_record what it did, once both are checked.
    on_progress hears in a long pass what it is doing, and the share of it that is done, if known;
    at 0 what is about to be done, with the time and the memory that it may take.
    """

    check: Check | None = None
    on_graph: Callable[[str, str], None] | None = None
    on_record: Callable[[PassRecord], None] | None = None
    on_progress: Callable[[float | None, str], None] = lambda share, what: None
    fuel: int | None = None
    misses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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


@contextmanager
def in_context(context: PassContext) -> Iterator[None]:
    """Makes `context` the current one meanwhile."""
    _CONTEXT.append(context)
    try:
        yield
    finally:
        _CONTEXT.pop()


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
