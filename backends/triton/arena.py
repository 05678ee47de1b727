"""The arena of an entry on a GPU: real element sizes, and no place for what fused steps keep.

The plan of the program (passes/plan_memory.py) counts the graph's float32 and the CPU's scratch;
which entries there are and how many tokens they take is taken from it.
"""

from __future__ import annotations

from graphwright.backends.triton.dtypes import ITEM_SIZES, StoredTypes
from graphwright.backends.triton.fusions import Fusions
from graphwright.ir.arena import Lifetime, place
from graphwright.ir.errors import BackendError
from graphwright.ir.layout import row_size
from graphwright.ir.memory import Buffer, MemoryPlan, buffer_name, result_of, steps
from graphwright.ir.program import Program

__all__ = ["check_arena", "plan_arena"]


def plan_arena(
    program: Program, types: StoredTypes, fusions: Fusions, entry: MemoryPlan
) -> MemoryPlan:
    """`entry` laid out anew."""
    logits = result_of(program.graph)
    sizes: dict[str, int] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, step in enumerate(steps(program.graph)):
        for name, (owner, value) in fusions.writes(step).items():
            item = ITEM_SIZES[types.of_result(owner, name, value)]
            sizes[name] = entry.max_tokens * row_size(value) * item
            first.setdefault(name, number)  # there already, where the step works in place
            last[name] = number
        if step not in fusions.absorbed:
            for view in fusions.reads(step):
                if view.base.op != "placeholder":
                    last[buffer_name(view.base)] = number
    alive = [
        Lifetime(name, size, first[name], last[name])
        for name, size in sizes.items()
        if name != logits
    ]
    placed, size = place(alive)
    plan = MemoryPlan(entry.entry, entry.max_tokens, entry.max_rows, size, tuple(placed))
    check_arena(program, fusions, plan)
    return plan


def check_arena(program: Program, fusions: Fusions, plan: MemoryPlan) -> None:
    """Walks the steps and sees that whatever one reads is still what was written there.

    Raises BackendError.
    """
    logits = result_of(program.graph)
    places = {buffer.name: buffer for buffer in plan.buffers}
    intact: dict[str, Buffer] = {}
    for step in steps(program.graph):
        if step in fusions.absorbed:
            continue
        own = [places[name] for name in fusions.writes(step) if name != logits]
        for buffer in own:  # of one step all at once, as its launches may overlap
            for other in [*intact.values(), *own]:
                if other is not buffer and _overlap(buffer, other):
                    intact.pop(other.name, None)
                    if other in own:
                        raise BackendError(f"'{buffer.name}' and '{other.name}' share memory.")
        for view in fusions.reads(step):
            name = buffer_name(view.base)
            if view.base.op != "placeholder" and name != logits and name not in intact:
                raise BackendError(
                    f"step '{step.name}' of '{plan.entry}' reads '{name}', which is overwritten."
                )
        intact |= {buffer.name: buffer for buffer in own}


def _overlap(one: Buffer, other: Buffer) -> bool:
    return one.offset < other.offset + other.bytes and other.offset < one.offset + one.bytes
