"""The entries of a library as C source: tables of phases, which step_phases.c walks.

Every thread of the pool (step_pool.c) runs an entry: phase by phase it calls the phase's kernel
with its number, and waits for the others where it must (meetings.py). A table takes the same time
to compile for a hundred layers as for one, where calls written out took seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from graphwright.backends.rows import POOL_UNIT
from graphwright.backends.tvm.meetings import Meetings
from graphwright.backends.tvm.phases import PARAMETERS, POOL_PARTS, Operand, Phase

__all__ = ["entry_source"]

_WALK = Path(__file__).parent / "step_phases.c"
_ROWS_IN_BATCH = {"T": 0, "R": 3}
_PITCH, _PLACES = 4, 5  # in the batch header: from a block table to the next, of further pools


def entry_source(
    entries: Mapping[str, Sequence[Phase]],
    meetings: Mapping[str, Meetings],
    blobs: Mapping[str, int],
    parameters: Iterable[str] = PARAMETERS,
) -> str:
    """C source with one function per entry, what step_pool.c calls `Entry`.

    blobs: offsets in the weights region, by name. parameters: the pointers that entries take.
    """
    bases = {name: number for number, name in enumerate(parameters)}
    every = [phase for phases in entries.values() for phase in phases]
    counts = sorted({len(phase.operands) for phase in every})
    kernels = dict.fromkeys(phase.kernel.name for phase in every)
    lines = [f"#define MOST {max(counts, default=1)}", f"#define BATCH {bases['batch']}"]
    lines.append(_WALK.read_text())
    most = max(len(phases) for phases in entries.values())
    lines.append(f"const int32_t gw_most_phases = {most};")
    lines += [f"extern Kernel {name};" for name in kernels]
    lines += [_caller(count) for count in counts]
    for name, phases in entries.items():
        lines += _entry(name, phases, meetings[name], blobs, bases)
    return "\n".join(lines) + "\n"


def _caller(count: int) -> str:
    types = "".join(", void *" for _ in range(count))
    given = "".join(f", pointers[{number}]" for number in range(count))
    return (
        f"static int32_t call_{count}(Kernel *kernel, int32_t thread, int32_t threads, "
        "int32_t rows, void **pointers) {\n"
        f"  typedef int32_t Function(int32_t, int32_t, int32_t{types});\n"
        f"  return ((Function *)kernel)(thread, threads, rows{given});\n}}"
    )


def _entry(
    name: str, phases: Sequence[Phase], meetings: Meetings, blobs: Mapping[str, int],
    places: Mapping[str, int],
) -> list[str]:  # fmt: skip
    own = len(places)
    used = {operand.parameter for phase in phases for operand in phase.operands}
    parts = {part: place for part, place in _pool_parts(places) if part in used}
    bases = {**places, **{part: own + 1 + number for number, part in enumerate(parts)}}
    operands: list[str] = []
    rows: list[str] = []
    for phase, meet in zip(phases, meetings.after, strict=True):
        count = len(phase.operands)
        row = (
            len(operands), count, _ROWS_IN_BATCH[phase.rows], phase.replicated, phase.parts, meet,
            _streamed(phase), phase.adapters, phase.stream,
        )  # fmt: skip
        numbers = ", ".join(str(int(number)) for number in row)
        rows.append(f"  {{{phase.kernel.name}, call_{count}, {numbers}}},")
        operands += [_operand(each, bases, own, meetings.own, blobs) for each in phase.operands]
    parameters = "".join(f", void *p{number}" for number in range(own))
    given = ", ".join([*(f"p{number}" for number in range(own)), "own", *parts.values()])
    return [
        f"static const Operand {name}_operands[] = {{", *operands, "};",
        f"static const Phase {name}_phases[] = {{", *rows, "};",
        f"EXPORTED int32_t {name}(int32_t thread, int32_t threads, int32_t alone, Pool *pool, "
        f"void *own{parameters}) {{",
        f"  char *bases[] = {{{given}}};",
        f"  return run_phases({name}_phases, {len(rows)}, {name}_operands, thread, threads, alone, "
        "pool, bases);",
        "}",
    ]  # fmt: skip


def _pool_parts(places: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """What further pools have for themselves, and where it is, in C."""
    header = f"((const int32_t *)p{places['batch']})"
    for name, parts in POOL_PARTS.items():
        for number, part in enumerate(parts):
            count, unit = f"{header}[{_PITCH}]", f"{4 * (number + 1)}"
            if name == "kv":
                count, unit = f"{header}[{_PLACES + number}]", str(POOL_UNIT)
            yield part, f"(char *)p{places[name]} + (int64_t){count} * {unit}"


def _operand(
    operand: Operand, bases: Mapping[str, int], own: int, replicated: frozenset[str],
    blobs: Mapping[str, int],
) -> str:  # fmt: skip
    base = own if operand.buffer in replicated else bases[operand.parameter]
    offset = operand.offset + (blobs[operand.blob] if operand.blob else 0)
    return f"  {{{base}, {offset}}},"


def _streamed(phase: Phase) -> int:
    """Which operand is the weight that `phase.stream` speaks of."""
    return next((i for i, each in enumerate(phase.operands) if each.blob), 0) if phase.stream else 0
