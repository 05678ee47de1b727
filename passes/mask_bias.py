"""The terms of a mask, and the bias they add up to, evaluated for chosen queries and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from graphwright.ir import PassError, Program
from graphwright.ir.source import source_line
from graphwright.passes.mask_evaluation import RowEvaluator

__all__ = ["HIDING", "MaskTerm", "evaluate_bias"]

HIDING = -1e4
"""Scores that are all filled with a number up to this are hidden: exp gives zero beside others."""
_LOWEST = -1e30  # a bias below this hides a key: -inf, or the lowest value of the model's dtype
_LATER = 0.9 * HIDING  # so does one like those of all later tokens, if those are all below this


@dataclass(frozen=True)
class MaskTerm:
    """Part of a mask: `add` node * factor to the scores, `keep` where true, `hide` where true;
    `times` node, which is 0 or 1. Terms are in order, those next to the softmax first."""

    kind: str
    node: fx.Node
    factor: float = 1.0


def evaluate_bias(
    program: Program, terms: Sequence[MaskTerm], length: int, rows: torch.Tensor
) -> torch.Tensor:
    """The sum of the terms as a bias, float64 [heads, rows, length]; hidden keys have -inf.

    Raises PassError when a term cannot be evaluated, or multiplies scores by anything but 1 where
    no other hides them.
    """
    evaluator = RowEvaluator(program, length, rows)
    total = torch.zeros(1, len(rows), length, dtype=torch.float64)
    for term in terms:
        value = _value(evaluator, term, length)
        if term.kind == "add":
            total = total + value.double() * term.factor
        elif term.kind == "times":
            total = _without_zeros(total, value, term, rows)
        else:
            keep = value.bool() if term.kind == "keep" else ~value.bool()
            total = total.masked_fill(~keep, float("-inf"))
    return _without_hidden(total, rows).expand(-1, len(rows), length)


def _value(evaluator: RowEvaluator, term: MaskTerm, length: int) -> torch.Tensor:
    """The value of a term, [heads, rows, length] or broadcastable to it."""
    try:
        value = evaluator.matrix(term.node)
    except (RuntimeError, IndexError) as error:
        raise PassError(
            f"the attention mask '{term.node.name}' cannot be evaluated for {length} tokens "
            f"({str(error).splitlines()[0]}). If the model's context is shorter, say so by "
            "max_context."
        ) from error
    while value.dim() > 3 and value.shape[0] == 1:
        value = value[0]
    return value.flatten(0, -3) if value.dim() > 3 else value


def _without_zeros(
    total: torch.Tensor, value: torch.Tensor, term: MaskTerm, rows: torch.Tensor
) -> torch.Tensor:
    """`total` where scores are multiplied by 0 or 1 before it is added: scores that become zero are
    no more than what is added, and must be hidden by it, beside the others of their query."""
    total, value = torch.broadcast_tensors(total, value)
    zero = value == 0
    where = f"'{term.node.name}'{source_line(term.node)}"
    others = value[~zero & (value != 1)]
    if len(others):
        raise PassError(
            f"{where} multiplies scores by other numbers than 0 and 1, such as {others[0]:.6g}."
        )
    largest = total.masked_fill(zero, float("-inf")).amax(-1, keepdim=True)
    seen = (zero & (total > HIDING + largest.clamp(max=0))).nonzero()
    if len(seen):
        _, row, key = (int(i) for i in seen[0])
        raise PassError(
            f"{where} multiplies scores by zero, such as that of query {int(rows[row])} and key "
            f"{key}, and what is added to them does not hide these keys: it would have to be "
            f"{HIDING:g} or less, beside what is added to the others."
        )
    return total.masked_fill(zero, float("-inf"))


def _without_hidden(bias: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`bias` [heads, rows, length] with -inf where it hides a key: where it is about as low as for
    any later token.

    Models that were not written for -inf add -1e9, or -1e4, to the scores of what is hidden. Its
    weight is exp of that, 0 in float32, unless all visible scores are thousands lower than it.
    """
    later = torch.arange(bias.shape[2])[None, :] > rows[:, None]
    highest = float(bias.masked_fill(~later, float("-inf")).max())
    lowest = max(_LOWEST, highest / 2) if highest < _LATER else _LOWEST
    return bias.masked_fill(bias < lowest, float("-inf"))
