"""Where the threads of a step must meet, and which values each of them has for itself.

In a step of more than ALONE_ROWS tokens they meet after every phase. In a smaller one a replicated
phase writes each thread's own copy of the arena, at the planned places, and threads meet only
before a phase that touches shared memory which another thread may have written or may still read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from graphwright.backends.tvm.phases import POOL_PARTS, Operand, Phase
from graphwright.ir.errors import BackendError
from graphwright.ir.memory import MemoryPlan

__all__ = ["Meetings", "plan_meetings", "verify_meetings"]

_EVERYTHING = 2**62


@dataclass(frozen=True)
class Meetings:
    """own: buffers that a small step keeps once a thread. after[i]: do threads meet after phase i
    of a small step? The end of the step is a meeting by itself."""

    own: frozenset[str]
    after: tuple[bool, ...]


@dataclass(frozen=True)
class _Access:
    """Bytes [first, last) of a shared region that a phase touches."""

    region: str
    first: int
    last: int
    written: bool

    def conflicts(self, other: _Access) -> bool:
        overlap = self.first < other.last and other.first < self.last
        return self.region == other.region and overlap and (self.written or other.written)


def plan_meetings(phases: Sequence[Phase], plan: MemoryPlan) -> Meetings:
    """As few meetings as possible, each as late as possible. Raises BackendError."""
    own = frozenset(
        operand.buffer
        for phase in phases
        if phase.replicated
        for operand in phase.operands
        if operand.written and operand.buffer is not None
    )
    places = {buffer.name: (buffer.offset, buffer.bytes) for buffer in plan.buffers}
    after = [False] * len(phases)
    since: list[_Access] = []
    for number, phase in enumerate(phases):
        accesses = list(_shared(phase, own, places))
        if any(new.conflicts(old) for new in accesses for old in since):
            after[number - 1] = True
            since = []
        since += accesses
    return Meetings(own, tuple(after))


def verify_meetings(phases: Sequence[Phase], plan: MemoryPlan, meetings: Meetings) -> None:
    """Raises BackendError unless, between two meetings of a small step,

    * no two phases touch the same shared bytes, one of them writing;
    * and what a thread has for itself is written by replicated phases only, and they write nothing
      else.

    A thread's own copies have the places of the plan, so that what verify_plan has shown of the
    whole arena holds for them too.
    """
    places = {buffer.name: (buffer.offset, buffer.bytes) for buffer in plan.buffers}
    for phase in phases:
        for operand in phase.operands:
            if operand.written and phase.replicated != (operand.buffer in meetings.own):
                kind = "every thread" if phase.replicated else "threads together"
                raise BackendError(
                    f"phase '{phase.step}' ({phase.kernel.name}) is computed by {kind} but writes "
                    f"'{operand.buffer or operand.parameter}', which is not kept so."
                )
    bounds = [0, *(i + 1 for i, meet in enumerate(meetings.after) if meet), len(phases)]
    for first, last in pairwise(bounds):
        group = [(p, list(_shared(p, meetings.own, places))) for p in phases[first:last]]
        for i, (earlier, touched) in enumerate(group):
            for later, touching in group[i + 1 :]:
                if any(a.conflicts(b) for a in touched for b in touching):
                    raise BackendError(
                        f"phases '{earlier.step}' ({earlier.kernel.name}) and '{later.step}' "
                        f"({later.kernel.name}) touch the same bytes without a meeting between."
                    )


def _shared(
    phase: Phase, own: frozenset[str], places: dict[str, tuple[int, int]]
) -> Iterator[_Access]:
    for operand in phase.operands:
        if operand.buffer not in own and (operand.written or operand.parameter in _WRITABLE):
            yield _Access(operand.parameter, *_extent(operand, places), operand.written)


_CACHES = ("kv", *POOL_PARTS["kv"])
_WRITABLE = ("arena", *_CACHES, "logits")  # what no step writes needs no meeting


def _extent(operand: Operand, places: dict[str, tuple[int, int]]) -> tuple[int, int]:
    if operand.buffer is not None:
        offset, size = places[operand.buffer]
        return offset, offset + size
    if operand.parameter in _CACHES:  # tensors of the cache are told apart by where they start
        return operand.offset, operand.offset + 1
    return 0, _EVERYTHING
