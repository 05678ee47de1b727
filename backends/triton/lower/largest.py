"""What follows a step whose tokens are chosen greedily: the largest logit of each sampled row."""

from __future__ import annotations

from graphwright.backends.triton.context import LoweringContext
from graphwright.backends.triton.kernels.argmax import argmax, argmax_scratch
from graphwright.backends.triton.launches import Launch, Operand

__all__ = ["largest_logits"]


def largest_logits(context: LoweringContext) -> list[Launch]:
    """One launch over the logits that the step has written."""
    width = int(context.program.output.meta["val"].shape[-1])
    keys, counters = argmax_scratch(width, context.bucket("R"))
    kernel = context.kernel(argmax, width, stride=width)
    operands = (
        Operand("batch"), Operand("logits"), *context.scratch(keys), context.counters(counters),
        Operand("chosen"),
    )  # fmt: skip
    return [Launch("largest", kernel, operands)]
