"""Running passes in order: verified by level after each, by numbers after each stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from graphwright.ir.errors import BudgetError, GraphwrightError, PassError
from graphwright.ir.printer import format_graph
from graphwright.ir.program import PassRecord, Program
from graphwright.ir.verifier import verify_level
from graphwright.passes.base import Exactness, Pass, PassContext, in_context

__all__ = ["run_passes"]

_APART = (Exactness.APPROXIMATE, Exactness.COARSE, Exactness.ASKED)


def run_passes(
    program: Program, passes: Sequence[Pass], context: PassContext | None = None
) -> Program:
    """Runs `passes` in order over `program`, in place, and returns it; each adds to `program.log`.

    With `context.check` what they make together is compared after each stage, and after each pass
    that approximates; one that a user asked to change the model ends a stage and is not compared.
    If that or a pass fails, all run again with a comparison after each pass that rewrote something,
    and the outcome of this counts: it names the pass that went wrong.
    Raises PassError naming the pass that failed and those that ran before it, and BudgetError as it
    comes, at once.
    """
    context = context or PassContext(fuel=PassContext.fuel_from_environment())
    _check_order(passes)
    if context.check is None:
        _Run(program, context).all([[step] for step in passes])
        return program
    original, fuel = program.copy(), context.fuel
    run = _Run(program, context)
    try:
        run.all(list(_groups(passes)))
        return program
    except BudgetError:
        raise
    except GraphwrightError:  # which the passes one by one raise again, or do not deserve
        pass
    _Run(original, replace(context, fuel=fuel), run.told).all([[step] for step in passes])
    program.become(original)
    return program


def _check_order(passes: Sequence[Pass]) -> None:
    seen: set[type[Pass]] = set()
    present = {type(step) for step in passes}
    for step in passes:
        for earlier in step.after:
            if earlier in present and earlier not in seen:
                raise PassError(f"'{step.title()}' must come after '{earlier.title()}'.")
        seen.add(type(step))


def _groups(passes: Sequence[Pass]) -> Iterator[list[Pass]]:
    """The passes of a stage together, but those that approximate each for itself."""
    group = list(passes[:1])
    for last, step in pairwise(passes):
        alone = last.exactness in _APART or step.exactness in _APART
        if alone or step.stage is not last.stage:
            yield group
            group = []
        group.append(step)
    if group:
        yield group


class _Run:
    """One time through the passes. told: of how many passes the context's listeners know."""

    def __init__(self, program: Program, context: PassContext, told: int = 0) -> None:
        self._program = program
        self._context = context
        self._texts: list[str] = []
        self._begin = len(program.log)
        self.told = told

    def all(self, groups: Sequence[Sequence[Pass]]) -> None:
        """The passes of each group, then the check; then those who listen hear of them."""
        check = self._context.check
        with in_context(self._context):
            if check:
                check.remember(self._program)
            for group in groups:
                for step in group:
                    with self._naming(step):
                        self._one(step)
                if check:
                    with self._naming(group[-1], group):
                        self._compare(group)
                self._tell()

    def _one(self, step: Pass) -> None:
        program, context = self._program, self._context
        nodes = len(program.graph.nodes)
        context.misses, context.notes = [], []
        start = time.perf_counter()
        rewrites = step.run(program)
        seconds = time.perf_counter() - start
        if rewrites:
            program.clean()
        if step.reaches is not None:
            program.level = step.reaches
        verify_level(program)
        record = PassRecord(
            name=step.title(),
            rewrites=rewrites,
            seconds=seconds,
            nodes_before=nodes,
            nodes_after=len(program.graph.nodes),
            misses=list(context.misses),
            notes=list(context.notes),
        )
        program.log.append(record)
        if context.on_graph:
            same = self._texts and not rewrites
            self._texts.append(self._texts[-1] if same else format_graph(program))

    def _compare(self, group: Sequence[Pass]) -> None:
        """What the passes of `group` that rewrote something promise together."""
        records = self._program.log[-len(group) :]
        promises = {
            step.exactness for step, record in zip(group, records, strict=True) if record.rewrites
        }
        if not promises or not self._context.check:
            return
        exactness = promises.pop() if len(promises) == 1 else Exactness.REASSOCIATING
        if exactness is Exactness.ASKED:  # what follows must be what this has made
            self._context.check.remember(self._program)
            return
        error = self._context.check.compare(self._program, exactness)
        for record in records:
            if record.rewrites:
                record.verified = error

    def _tell(self) -> None:
        records = self._program.log[self._begin :]
        for number in range(self.told, len(records)):
            record = records[number]
            if self._context.on_graph:
                self._context.on_graph(f"{number:02d}-{record.name}", self._texts[number])
            if self._context.on_record:
                self._context.on_record(record)
        self.told = max(self.told, len(records))

    @contextmanager
    def _naming(self, step: Pass, checked: Sequence[Pass] = ()) -> Iterator[None]:
        """Names in errors the pass they come from; `checked` ran, but did not stand the check."""
        try:
            yield
        except BudgetError:
            raise
        except GraphwrightError as error:
            log = self._program.log[: len(self._program.log) - len(checked)]
            done = ", ".join(record.name for record in log) or "none"
            raise type(error)(
                f"{error}\n  in pass '{step.title()}'; passes before it: {done}."
            ) from error
