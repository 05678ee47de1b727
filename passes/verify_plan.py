"""The plan verifier: runs a step in the mind, on an arena whose bytes know which value they hold.

It shares with the planner what a step reads and writes, and nothing of lifetimes or placement.
"""

from __future__ import annotations

from torch import fx

from graphwright.ir.errors import PassError
from graphwright.ir.layout import row_size, row_view
from graphwright.ir.memory import (
    ALIGNMENT,
    Buffer,
    MemoryPlan,
    buffer_name,
    in_place,
    operands,
    result_of,
    results,
    scratch,
    steps,
)

__all__ = ["verify_plan"]


def verify_plan(graph: fx.Graph, plan: MemoryPlan) -> None:
    """Raises PassError, naming step and buffers, unless executing `graph` in order with this plan

    * writes every value into its own aligned place inside the arena, large enough for its rows;
    * reads every value while its place still holds all of it;
    * never writes over what the same step reads, unless it works in place, and then nobody reads
      what was there before;
    * and the arena ends where the last buffer ends.
    """
    _check_places(plan)
    places = {buffer.name: buffer for buffer in plan.buffers}
    arena = _Arena(plan)
    logits = result_of(graph)
    used: set[str] = set()
    changed: set[fx.Node] = set()
    for step in steps(graph):
        reads = _reads(step, logits, changed)
        source = in_place(step)
        changed |= {source} if source is not None else set()
        written = {
            name: (value.dtype.itemsize * row_size(value)) for name, value in results(step).items()
        }
        written.pop(logits, None)
        for need in scratch(step, plan.max_tokens):
            if arena.holds(places.get(need.name)):
                reads.append(need.name)
            else:
                written[need.name] = need.row_bytes
        for name in (*reads, *written):
            if name not in places:
                raise PassError(
                    f"step '{step.name}': '{name}' has no place in plan '{plan.entry}'."
                )
        for name in reads:
            arena.read(step, places[name])
        for name, row_bytes in written.items():
            _check_size(step, places[name], row_bytes * plan.max_tokens)
            for other in (*reads, *(each for each in written if each != name)):
                if other == name and source is not None:
                    continue
                _check_apart(step, places[name], places[other])
        for name in written:
            arena.write(places[name])
        used |= written.keys()
    if places.keys() != used:
        raise PassError(
            f"plan '{plan.entry}' places {sorted(places.keys() - used)}, which no step writes."
        )


class _Arena:
    """Which buffer each range of the arena holds."""

    def __init__(self, plan: MemoryPlan) -> None:
        self._entry = plan.entry
        self._live: dict[str, Buffer] = {}
        self._killed: dict[str, str] = {}

    def write(self, buffer: Buffer) -> None:
        for name in [name for name, other in self._live.items() if _overlap(buffer, other)]:
            del self._live[name]
            self._killed[name] = buffer.name
        self._live[buffer.name] = buffer

    def holds(self, buffer: Buffer | None) -> bool:
        return buffer is not None and buffer.name in self._live

    def read(self, step: fx.Node, buffer: Buffer) -> None:
        if not self.holds(buffer):
            killer = self._killed.get(buffer.name)
            why = f"'{killer}' was written over it" if killer else "nothing has written it"
            raise PassError(
                f"plan '{self._entry}': step '{step.name}' reads '{buffer.name}' at "
                f"{buffer.offset}..{buffer.offset + buffer.bytes}, but {why}."
            )


def _reads(step: fx.Node, logits: str, changed: set[fx.Node]) -> list[str]:
    """Buffers of the arena that a step reads, each view checked to lie inside its base's rows."""
    names = []
    for node, view in zip(_row_inputs(step), operands(step), strict=True):
        whole = row_size(view.base.meta["val"])
        if view.offset < 0 or view.offset + view.row_size > whole or view.row_stride != whole:
            raise PassError(
                f"step '{step.name}' reads '{node.name}', elements {view.offset}.."
                f"{view.offset + view.row_size} of '{view.base.name}', whose rows have {whole}."
            )
        if view.base in changed:
            raise PassError(
                f"step '{step.name}' reads '{view.base.name}', to which a step before it has added."
            )
        if view.base.op != "placeholder" and buffer_name(view.base) != logits:
            names.append(buffer_name(view.base))
    return names


def _row_inputs(step: fx.Node) -> list[fx.Node]:
    return [
        node
        for node in step.all_input_nodes
        if node.op != "get_attr" and "val" in node.meta and row_view(node) is not None
    ]


def _check_places(plan: MemoryPlan) -> None:
    names = [buffer.name for buffer in plan.buffers]
    if len(set(names)) != len(names):
        raise PassError(f"plan '{plan.entry}' places a buffer twice.")
    for buffer in plan.buffers:
        end = buffer.offset + buffer.bytes
        if buffer.offset % ALIGNMENT or buffer.offset < 0:
            raise PassError(
                f"plan '{plan.entry}': '{buffer.name}' starts at byte {buffer.offset}, "
                f"no multiple of {ALIGNMENT}."
            )
        if end > plan.arena_bytes:
            raise PassError(
                f"plan '{plan.entry}': '{buffer.name}' ends at byte {end} of an arena of "
                f"{plan.arena_bytes}."
            )
    end = max((buffer.offset + buffer.bytes for buffer in plan.buffers), default=0)
    if not end <= plan.arena_bytes < end + ALIGNMENT:
        raise PassError(
            f"plan '{plan.entry}': the arena has {plan.arena_bytes} bytes, {end} are used."
        )


def _check_size(step: fx.Node, buffer: Buffer, needed: int) -> None:
    if buffer.bytes < needed:
        raise PassError(
            f"step '{step.name}' writes {needed} bytes into '{buffer.name}' of {buffer.bytes}."
        )


def _check_apart(step: fx.Node, one: Buffer, other: Buffer) -> None:
    if _overlap(one, other):
        raise PassError(
            f"step '{step.name}' writes '{one.name}' at {one.offset}..{one.offset + one.bytes} "
            f"over '{other.name}' at {other.offset}..{other.offset + other.bytes}, also its own."
        )


def _overlap(one: Buffer, other: Buffer) -> bool:
    return one.offset < other.offset + other.bytes and other.offset < one.offset + one.bytes
