"""What a mask computes, whatever it is spelled like: evaluated for sample positions and classified.

A mask is a sum of additive terms and of conditions, content-free nodes over (query, key). It is
evaluated for positions 0, 1, 2, …, fitted to the algebra of ir/masks.py plus an ALiBi bias
slopes[h] * (key - query), and the fit is confirmed at other sizes, beyond every constant of the
mask's graph and up to the longest context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from graphwright.ir import Mask, PassError, Program
from graphwright.ir.source import source_line
from graphwright.passes.content_free import is_shape_only
from graphwright.passes.mask_bias import MaskTerm, evaluate_bias
from graphwright.passes.mask_evaluation import FULL_LENGTH, RowEvaluator
from graphwright.passes.mask_fit import fit_mask, fit_slopes

__all__ = ["RecognizedMask", "recognize_mask"]

_SMALL = 64
_CONFIRM = (1, 2, 3, 7, 33, 65)
_LONGEST = 8192  # looked at when the model does not say how long its context is
_LARGEST = 2**17  # positions looked at however long the context is said to be


@dataclass(frozen=True)
class RecognizedMask:
    """The mask, and the ALiBi slopes [H] (or [1] for all heads) in float32 when there are any.

    shifted: the scores of some query also move by a constant, which a softmax over keys takes off.
    """

    mask: Mask
    slopes: torch.Tensor | None
    shifted: bool


def recognize_mask(
    program: Program, terms: Sequence[MaskTerm], content_free: set[fx.Node]
) -> RecognizedMask:
    """Classifies the sum of `terms`.

    Raises PassError, naming the node and showing the first rows, when a term depends on what the
    tokens are or computes something that the mask algebra does not have.
    """
    for term in terms:
        if term.node not in content_free:
            raise PassError(
                f"the attention mask '{term.node.name}' depends on the content of the tokens, not "
                f"only on their positions{source_line(term.node)}."
            )
    names = " + ".join(term.node.name for term in terms)
    longest = min(program.info.max_context or _LARGEST, _LARGEST)
    constants = _constants(program, terms, longest)
    if program.info.max_context is None:
        longest = max([_LONGEST, *(min(2 * number + 3, _LARGEST) for number in constants)])
    if not _by_rows(program, terms):
        if constants and constants[-1] >= FULL_LENGTH:
            raise PassError(
                f"the attention mask '{names}' can only be evaluated for {FULL_LENGTH} tokens, and "
                f"its graph holds the number {constants[-1]}, which may be a window."
            )
        longest = min(longest, FULL_LENGTH)
    rows = torch.arange(_SMALL)
    bias = evaluate_bias(program, terms, _SMALL, rows)
    fitted = fit_mask(bias, rows, constants)
    if fitted == Mask() and longest > _SMALL:
        rows = _sample_rows(longest, constants)
        fitted = fit_mask(evaluate_bias(program, terms, longest, rows), rows, constants)
    if fitted is None:
        raise PassError(_unknown(names, terms, program))
    slopes = fit_slopes(bias, torch.arange(_SMALL), fitted)
    shifted = False
    for length, rows in _confirmations(constants, longest):
        bias = evaluate_bias(program, terms, length, rows)
        where = f"'{names}'{source_line(terms[0].node)}{_rounding(terms)}"
        shifted |= _confirm(where, bias, rows, fitted, slopes)
    return RecognizedMask(fitted, None if slopes is None else slopes.float(), shifted)


def _by_rows(program: Program, terms: Sequence[MaskTerm]) -> bool:
    evaluator = RowEvaluator(program, _SMALL, torch.tensor([1, 5]))
    return all(evaluator.by_rows(term.node) for term in terms)


def _constants(program: Program, terms: Sequence[MaskTerm], longest: int) -> list[int]:
    """Integers between the small size and the context in the terms' graphs: windows and chunks."""
    found: set[int] = set()
    for node in _ancestors(terms):
        for argument in (*node.args, *node.kwargs.values()):
            items = argument if isinstance(argument, (list, tuple)) else [argument]
            found |= {abs(int(i)) for i in items if isinstance(i, (int, float)) and abs(i) < 2**40}
        weight = program.weight_of(node)
        if weight is not None and weight.shape in ((), (1,)):
            found.add(abs(int(weight.load().double().nan_to_num(0, 0, 0).clamp(-(2**40), 2**40))))
    return sorted(number for number in found if _SMALL - 2 <= number < longest)


def _sample_rows(length: int, constants: Sequence[int]) -> torch.Tensor:
    """Query rows worth looking at: the first, the last, around constants, and some in between."""
    rows = {0, 1, 2, 3, 5, length // 3, length // 2, length - 2, length - 1}
    for number in constants[-16:]:
        rows |= {k * number + d for k in (1, 2, 3) for d in (-2, -1, 0, 1, 2)}
    return torch.tensor(sorted(row for row in rows if 0 <= row < length))


def _confirmations(constants: list[int], longest: int) -> Iterator[tuple[int, torch.Tensor]]:
    for length in _CONFIRM:
        yield length, torch.arange(length)
    sizes = {257, longest} | {number + d for number in constants[-16:] for d in (1, 3)}
    for length in sorted(size for size in sizes if _SMALL < size <= longest):
        yield length, _sample_rows(length, constants)


def _ancestors(terms: Sequence[MaskTerm]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = [term.node for term in terms]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            skipped = node.args[0] if is_shape_only(node) else None
            stack += [source for source in node.all_input_nodes if source is not skipped]
    return seen


def _confirm(
    names: str, bias: torch.Tensor, rows: torch.Tensor, mask: Mask, slopes: torch.Tensor | None
) -> bool:
    """Raises PassError unless `bias` is what `mask` and `slopes` say, up to a shift of each row.

    Returns whether there is such a shift.
    """
    length = bias.shape[2]
    keys = torch.arange(length)
    expected = mask.visible(rows[:, None], keys[None, :])
    visible = ~bias.isinf()
    if not torch.equal(visible, expected[None].expand_as(visible)):
        head, row, key = (int(i) for i in (visible != expected).nonzero()[0])
        raise PassError(
            f"the attention mask {names} looked like '{mask}', but with {length} tokens query "
            f"{int(rows[row])} {'sees' if visible[head, row, key] else 'does not see'} key {key}."
        )
    slope = torch.zeros(1, dtype=torch.float64) if slopes is None else slopes
    distance = (keys[None, :] - rows[:, None]).double()
    fit = slope[:, None, None] * distance
    own = bias.gather(2, rows[None, :, None].expand(bias.shape[0], -1, 1))
    error = (bias - own - fit).abs().masked_fill(~visible, 0)
    finite = bias.abs().masked_fill(~visible, 0)
    allowed = 1e-6 + 4e-7 * float(finite.max())
    if not bool((error <= allowed).all()):
        head, row, key = (int(i) for i in (error > allowed).nonzero()[0])
        query = int(rows[row])
        got = float(bias[head, row, key] - own[head, row, 0])
        raise PassError(
            f"the attention bias {names} is no ALiBi bias slopes[h] * (key - query): with "
            f"{length} tokens, head {head} gives key {key} {got:.6g} more than query {query}'s own "
            f"key, and {float(fit[min(head, len(slope) - 1), row, key]):.6g} was expected from the "
            f"first {_SMALL} tokens."
        )
    return bool((own.abs() > 1e-6).any())


# ---- showing


def _unknown(names: str, terms: Sequence[MaskTerm], program: Program) -> str:
    size = 10
    bias = evaluate_bias(program, terms, size, torch.arange(size))[0]
    rows = ["".join("." if v == float("-inf") else "1" for v in row) for row in bias.tolist()]
    visible = ~bias.isinf()
    later, blind = visible.triu(1).nonzero(), (~visible.any(1)).nonzero()
    reason = "is not in the mask algebra (causal, window, first, chunk)"
    if len(blind):
        reason += f": it shows no key at all to query {int(blind[0])}"
    if len(later):
        query, key = (int(i) for i in later[0])
        reason = f"is not causal: query {query} sees key {key}, a later token"
    shown = "\n    ".join(rows)
    return (
        f"the attention mask '{names}'{source_line(terms[0].node)} {reason}. "
        f"Its first {size} queries see these keys:\n    {shown}"
    )


def _rounding(terms: Sequence[MaskTerm]) -> str:
    """Says so when a term is computed in less than float32: the usual reason for a bad fit."""
    for node in _ancestors(terms):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16):
            return f" (rounded to {value.dtype} at '{node.name}')"
    return ""
