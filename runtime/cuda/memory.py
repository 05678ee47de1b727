"""What lies in a GPU's memory, by the sizes that the library asks the driver for."""

from __future__ import annotations

from graphwright.runtime.buffers import planned_bytes
from graphwright.runtime.draws import WORDS
from graphwright.runtime.plan import Plan

__all__ = ["device_bytes"]


def device_bytes(
    plan: Plan, max_sequences: int, blocks_each: int, counter_bytes: int, snapshots: int = 0
) -> dict[str, int]:
    """Bytes by what they are for, of an engine for so many sequences of so many blocks each, and so
    many snapshots of states.

    The driver's own memory and the code of the kernels come on top.
    """
    return {
        **planned_bytes(plan, max_sequences, blocks_each, snapshots=snapshots),
        "choices": (4 + 8 * WORDS) * plan.rows,
        "counters": max(counter_bytes, 1),
    }
