"""Launches that begin before those in front of them have ended: sm_90 and newer.

A kernel with EARLY lets the launch behind it begin at once, and waits for those in front of it.
What it does in between runs while they end: until it has waited, it may read constants (weights)
and what a step begins with (its counts, positions and tables; the launch behind the one that brings
those is an ordinary one, so that no other begins before they are there), and must write nothing.
Every program waits before it returns. A launch in front of it has waited in the same way before it
could end, so that whoever has waited finds everything done that is in front of it in the stream,
whichever launch did it. Other kernels are launched as usual and begin when all of that is done:
those that would have nothing to do before they wait.

Source: PTX ISA, "griddepcontrol"; CUDA programming guide, programmatic dependent launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.nibbles import COMPILED

__all__ = ["let_next_begin", "wait_for_inputs"]


@triton.jit
def let_next_begin(EARLY: tl.constexpr):
    """The launch behind this one may begin, once all programs of this one have come here."""
    if EARLY and COMPILED:
        tl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; mov.b32 $0, 0;", "=r", [], tl.int32, False, 1
        )


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr):
    """Until the launches in front have ended, and what they wrote is there."""
    if EARLY and COMPILED:
        tl.inline_asm_elementwise(
            "griddepcontrol.wait; mov.b32 $0, 0;", "=r", [], tl.int32, False, 1
        )
