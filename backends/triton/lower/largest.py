"""What follows a step that chooses its tokens from the logits of each sampled row."""

from __future__ import annotations

from graphwright.backends.triton.context import LoweringContext
from graphwright.backends.triton.kernels.argmax import argmax, argmax_scratch
from graphwright.backends.triton.kernels.draw import draw, draw_scratch
from graphwright.backends.triton.launches import Launch, Operand

__all__ = ["drawn_tokens", "largest_logits"]

LOGITS = Operand("logits")
RESULTS = (Operand("largest"), Operand("chosen"))


def largest_logits(context: LoweringContext) -> list[Launch]:
    """One launch over the logits that the step has written: greedy decoding needs no more."""
    width = _width(context)
    keys, counters = argmax_scratch(width, context.bucket("R"))
    kernel = context.kernel(argmax, width, stride=width)
    scratch = (*context.scratch(keys), context.counters(counters))
    return [Launch("largest", kernel, (Operand("batch"), LOGITS, *scratch, *RESULTS))]


def drawn_tokens(context: LoweringContext) -> list[Launch]:
    """One launch behind that of `largest_logits`, which says what the largest is."""
    width = _width(context)
    parts, keys, counters = draw_scratch(width, context.bucket("R"))
    kernel = context.kernel(draw, width, stride=width)
    scratch = (*context.scratch(parts, keys), context.counters(counters))
    given = (Operand("batch"), Operand("draws"), LOGITS)
    return [Launch("drawn", kernel, (*given, *scratch, *RESULTS))]


def _width(context: LoweringContext) -> int:
    return int(context.program.output.meta["val"].shape[-1])
