"""The entries once more, with a clock around every phase: what `bench --profile` runs.

They call the same kernels with the same barriers, and step_profile.c's `gw_mark` in between, so
that the plain entries stay free of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import ir, tirx
from tvm.ir import IRModule
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.emit import emit_entry
from graphwright.backends.tvm.meetings import Meetings
from graphwright.backends.tvm.phases import Phase

__all__ = ["SUFFIX", "emit_profile_entries"]

SUFFIX = "_profile"


def emit_profile_entries(
    entries: Mapping[str, Sequence[Phase]],
    meetings: Mapping[str, Meetings],
    blobs: Mapping[str, int],
) -> IRModule:
    """As emit_entries, under the names with SUFFIX."""
    return IRModule(
        {
            ir.GlobalVar(name + SUFFIX): emit_entry(
                name + SUFFIX, phases, meetings[name], blobs, _mark
            )
            for name, phases in entries.items()
        }
    )


def _mark(thread: Any, number: int) -> None:
    T.evaluate(tirx.call_extern("int32", "gw_mark", thread, T.int32(number)))
