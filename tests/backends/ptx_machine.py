"""Runs the PTX of a kernel: all threads of a program at once, programs one after the other.

Every thread has its own place in the code; those furthest behind run, until all are together again.
Copies to shared memory that do not wait (cp.async) arrive when their group is waited for, not
before; results of wgmma are there at once. Whatever is not known raises NotImplementedError; what a
GPU would not do, PtxError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from ptx_instructions import decoded
from ptx_memory import GlobalMemory, PtxError
from ptx_parse import Entry
from ptx_program import Program

__all__ = ["run"]

MOST_STEPS = 300_000  # instructions of a program


def run(
    entry: Entry, memory: GlobalMemory, shared: int, grid: tuple[int, int, int],
    order: Iterable[tuple[int, int, int]], parameters: dict[str, int],
) -> None:  # fmt: skip
    """Programs (x, y, z) of `grid` in `order`; shared: bytes; parameters: addresses by name."""
    steps = [decoded(each) for each in entry.code]
    targets = frozenset(entry.labels.values())
    for program in order:
        with np.errstate(all="ignore"):
            _run(Program(entry, memory, shared, grid, program, parameters), steps, targets)


def _run(program: Program, steps: list[Callable[[Program], None]], targets: frozenset[int]) -> None:
    code, count = program.entry.code, 0
    program.memory.begin()
    at = np.zeros(program.threads, np.int64)
    live = np.ones(program.threads, np.bool_)
    while live.any():
        place = int(at[live].min())
        running = live & (at == place)
        whole = running if not running.all() else None
        while True:
            instruction = code[place]
            program.active = whole
            count += 1
            try:
                if count > MOST_STEPS:
                    raise PtxError("the program does not end")
                if instruction.guard:
                    name, negated = instruction.guard
                    guard = program.bits(name, "pred") != negated
                    running_here = np.broadcast_to(guard, live.shape) & running
                    program.active = None if running_here.all() else running_here
                name = instruction.operation[0]
                if name == "bra":
                    label = instruction.operands[0]
                    taken = running if program.active is None else program.active
                    at[running] = place + 1
                    at[taken] = program.entry.labels[str(label)]
                    break
                if name == "brx":
                    if instruction.guard:
                        raise NotImplementedError("a guard of a jump by a table")
                    index, table = (str(each) for each in instruction.operands)
                    labels = [program.entry.labels[each] for each in program.entry.tables[table]]
                    chosen = np.array(labels)[program.all_threads(index, "u32")[running]]
                    at[running] = chosen
                    break
                if name in ("ret", "exit"):
                    at[running] = place + 1
                    live &= ~(running if program.active is None else program.active)
                    break
                if instruction.operation == ("bar", "sync"):
                    if instruction.guard or (running != live).any():
                        raise PtxError("a barrier that some threads do not reach together")
                    program.shared.barriers += 1
                    program.stored[:] = False
                elif program.active is None or program.active.any():
                    steps[place](program)
            except (PtxError, NotImplementedError, ValueError) as error:
                raise type(error)(f"{instruction.text} in program {program.place}: {error}") from (
                    error
                )
            place += 1
            if place in targets and whole is not None:
                at[running] = place
                break
    program.memory.end()
