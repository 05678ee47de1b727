"""What follows a step whose tokens are chosen from the largest logits of each sampled row."""

from __future__ import annotations

from graphwright.backends.triton.context import LoweringContext
from graphwright.backends.triton.kernels.argmax import argmax, argmax_scratch
from graphwright.backends.triton.kernels.candidates import candidates, candidates_scratch
from graphwright.backends.triton.launches import Launch, Operand

__all__ = ["CANDIDATES", "candidate_logits", "largest_logits"]

CANDIDATES = 64  # what models' own generation_config.json asks for as top_k is 20 to 64
LOGITS = (Operand("batch"), Operand("logits"))


def largest_logits(context: LoweringContext) -> list[Launch]:
    """One launch over the logits that the step has written: greedy decoding needs no more."""
    width = _width(context)
    keys, counters = argmax_scratch(width, context.bucket("R"))
    kernel = context.kernel(argmax, width, stride=width)
    scratch = (*context.scratch(keys), context.counters(counters))
    results = (Operand("largest"), Operand("chosen"))
    return [Launch("largest", kernel, (*LOGITS, *scratch, *results))]


def candidate_logits(context: LoweringContext) -> list[Launch]:
    """One launch, too, that finds CANDIDATES of them: for sampling from few."""
    width = _width(context)
    keys, counters = candidates_scratch(width, CANDIDATES, context.bucket("R"))
    kernel = context.kernel(candidates, width, CANDIDATES, stride=width)
    scratch = (*context.scratch(keys), context.counters(counters))
    return [Launch("candidates", kernel, (*LOGITS, *scratch, Operand("candidates")))]


def _width(context: LoweringContext) -> int:
    return int(context.program.output.meta["val"].shape[-1])
