"""What torch.export decided for the example's length alone: branches of the model's code.

An export with a dynamic length still holds such decisions: guards that are no plain bound of the
length are kept beside the graph. Numbers computed from the length are in length_constants.py.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.export import ExportedProgram
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import uninteresting_files

from graphwright.frontend.length_conditions import (
    broken_at,
    first_broken,
    holds,
    in_words,
    is_plain_bound,
)

__all__ = ["AnotherPathError", "Branches", "all_hold", "branches_of_the_model", "check_shorter",
           "longest_traced"]  # fmt: skip

aten = torch.ops.aten

Place = Callable[[Iterable[traceback.FrameSummary]], str]
Branches = dict[Any, traceback.FrameSummary]
"""From what the model's own code found true of sizes to the line that asked."""


@dataclass(frozen=True)
class _Condition:
    """What was taken for granted of the length: a sympy expression of one symbol."""

    expression: Any
    where: str
    inside_torch: bool

    @property
    def about_memory(self) -> bool:
        """Does it say that some size is not 0 or 1, which torch asks before it computes strides?"""
        return getattr(self.expression, "rel_op", "") == "!=" and self.expression.args[1] in (0, 1)

    @property
    def about_one_length(self) -> bool:
        """Does it say that two sizes differ, as torch asks before it computes strides?"""
        return getattr(self.expression, "rel_op", "") == "!="

    @property
    def text(self) -> str:
        """The condition in words, for when its place is not known."""
        (symbol,) = self.expression.free_symbols
        shown = str(self.expression).replace(str(symbol), "tokens")
        return f" (it was traced for {shown})"


class AnotherPathError(Exception):
    """The model's code goes another way for `length` tokens than it did for the example's.

    own: it is known that a branch of the model asked for it, so that no way to export helps.
    """

    def __init__(self, message: str, length: int, own: bool) -> None:
        super().__init__(message)
        self.length, self.own = length, own


def longest_traced(
    exported: ExportedProgram,
    branches: Branches,
    least: int,
    most: int | None,
    example: int,
    place: Place,
) -> int | None:
    """The longest length, at most `most`, up to which the model's code goes the traced way.

    example: the length it was traced with. Raises AnotherPathError, with the place in the source,
    when the way is tied to that length. What torch decides for one length only, as that a slice
    is then the whole, is about memory and no other way.
    """
    found = [(first_broken(condition.expression, least, most), condition)
             for condition in _conditions(exported, branches, place)]  # fmt: skip
    for length, condition in sorted(found, key=lambda item: -item[0]):
        if length == 0 or (most is not None and length > most):
            continue
        only = length == most or holds(condition.expression, length + 1)
        if condition.inside_torch and (only or condition.about_memory):
            continue
        if length <= 4 * example:
            where = condition.where or condition.text
            raise AnotherPathError(
                _another_path(length, where), length, own=not condition.inside_torch
            )
        most = length - 1
    return most


def check_shorter(
    exported: ExportedProgram, branches: Branches, wanted: int, least: int, place: Place
) -> None:
    """Raises AnotherPathError when the trace, made for `least` tokens or more, cannot be right for
    fewer: the model's code branched on it from `wanted` tokens on, or the graph asserts it."""
    asserted = {condition.expression for condition in _asserted(exported)}
    found = []
    for condition in _conditions(exported, branches, place):
        first = wanted
        if condition.expression in asserted and not condition.about_one_length:
            first = 1 if wanted > 2 else 2  # the graph is run for every length
        elif condition.inside_torch:
            continue
        broken = broken_at(condition.expression, first, least)
        if broken:
            found.append((broken[-1], condition, in_words(broken, first)))
    if found:
        length, condition, which = max(found, key=lambda item: (not item[1].inside_torch, item[0]))
        where = condition.where or condition.text
        raise AnotherPathError(_another_path(which, where), length, own=not condition.inside_torch)


def all_hold(branches: Branches, length: int) -> bool:
    """Does the model's code go the same way for `length` tokens, as far as it was traced?"""
    return all(len(c.free_symbols) == 1 and holds(c, length) for c in branches)


def _check_branch(condition: Any, where: str, least: int, length: int) -> None:
    """Raises AnotherPathError when a branch of the model, traced with `length` tokens, goes another
    way for `least` tokens or more that are no more than four times as many."""
    longer = first_broken(condition, length, 4 * length)
    if longer:
        raise AnotherPathError(_another_path(longer, where), longer, own=True)
    shorter = broken_at(condition, least, length)
    if shorter:
        which = in_words(shorter, least)
        raise AnotherPathError(_another_path(which, where), shorter[-1], own=True)


def _another_path(length: int | str, where: str) -> str:
    return f"its code takes another path for {length} tokens{where}"


def _conditions(
    exported: ExportedProgram, branches: Branches, place: Place
) -> Iterator[_Condition]:
    """What the trace took for granted, first what is known to be of the model's own code."""
    environment, symbols = _environment(exported)
    for expression, frame in branches.items():
        if expression.free_symbols == symbols:
            yield _Condition(expression, place([frame]), inside_torch=False)
    for guard in environment.guards:
        if guard.expr.free_symbols == symbols:
            frame, line = guard.sloc.framework_loc, guard.sloc.maybe_user_loc
            own = place([frame]) if isinstance(frame, traceback.FrameSummary) else ""
            yield _Condition(guard.expr, own or (f" at {line}" if line else ""), not own)
    yield from _asserted(exported)


def _asserted(exported: ExportedProgram) -> Iterator[_Condition]:
    """What the graph asserts."""
    _, symbols = _environment(exported)
    for node in exported.graph.nodes:
        if node.target is aten._assert_scalar.default:
            condition = node.args[0].meta["val"]
            if isinstance(condition, torch.SymBool) and condition.node.expr.free_symbols == symbols:
                yield _Condition(condition.node.expr, "", True)


def _environment(exported: ExportedProgram) -> tuple[Any, set[Any]]:
    """Where torch keeps what it decided about sizes, and the symbol of the number of tokens."""
    name = exported.graph_signature.user_inputs[0]
    value = next(node for node in exported.graph.nodes if node.name == name).meta["val"]
    return value.fake_mode.shape_env, value.shape[0].node.expr.free_symbols


@contextmanager
def branches_of_the_model(place: Place, least: int, length: int) -> Iterator[Branches]:
    """While open, collects the branches that code outside torch takes on sizes.

    An export that defers its guards keeps no other trace of who asked. length: of the example. A
    branch that goes another way for fewer tokens, from `least` on, or for up to four times as many
    raises AnotherPathError at once, as `check_shorter` and `longest_traced` would afterwards. A
    plain bound, as of `assert length <= 64`, does not: torch takes it for the longest length there
    is.
    """
    found: Branches = {}
    original, own_files = SymNode.guard_bool, uninteresting_files()

    def watch(self: Any, file: str, line: int) -> bool:
        asked = self.expr
        value = bool(original(self, file, line))
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename in own_files:
            frame = frame.f_back
        code = frame.f_code
        summary = traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name)
        if getattr(asked, "free_symbols", None) and place([summary]):
            condition = asked if value else ~asked
            known = condition in found or is_plain_bound(condition)
            if not known and len(condition.free_symbols) == 1:
                _check_branch(condition, place([summary]), least, length)
            found.setdefault(condition, summary)
        return value

    with mock.patch.object(SymNode, "guard_bool", watch):
        yield found
