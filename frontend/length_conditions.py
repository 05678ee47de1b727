"""What was taken for granted of a length, tried at lengths: for which it does not hold.

A condition is a sympy expression of one symbol, the number of tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.printers import PythonPrinter
from torch.utils._sympy.reference import PythonReferenceAnalysis

__all__ = ["broken_at", "first_broken", "holds", "in_words", "is_plain_bound"]

_EVERY = 200  # all lengths up to this are looked at,
_LONGEST = 2**15  # and those around powers of two up to this


def broken_at(condition: Any, first: int, end: int) -> list[int]:
    """The lengths from `first` up to `end`, without it, for which `condition` does not hold."""
    return [n for n in range(first, end) if not holds(condition, n)]


def in_words(broken: list[int], first: int) -> str:
    """In words: one of `broken`, or all of them when they are the first ones."""
    whole = len(broken) == broken[-1] + 1 - first
    return "fewer than " * whole + str(broken[-1] + whole)


def first_broken(condition: Any, least: int, most: int | None) -> int:
    """The first length for which `condition` does not hold; 0 when it always does."""
    good = least
    for length in _lengths(least, most):
        if not holds(condition, length):
            return next(n for n in range(good, length + 1) if not holds(condition, n))
        good = length
    return 0


def is_plain_bound(condition: Any) -> bool:
    """Is it a length, nothing else, that is at most a number?"""
    sides: tuple[Any, ...] = getattr(condition, "args", ())
    if getattr(condition, "rel_op", "") in (">", ">="):
        sides = sides[::-1]
    elif getattr(condition, "rel_op", "") not in ("<", "<="):
        return False
    return bool(sides[0].is_Symbol and sides[1].is_number)


def holds(condition: Any, length: int) -> bool:
    """Does `condition` hold for so many tokens? One that divides by zero there does not."""
    try:
        return bool(_function(condition)(length))
    except ZeroDivisionError:
        return False


@functools.lru_cache(maxsize=4096)
def _function(condition: Any) -> Callable[[int], Any]:
    """`condition` of a length, as Python code: a loop over tokens leaves thousands of conditions,
    each of which is asked for some hundred lengths."""
    (symbol,) = condition.free_symbols
    code = PythonPrinter().doprint(condition)
    try:
        function: Callable[[int], Any] = eval(f"lambda {symbol}: {code}", {"math": math})
        function(_LONGEST)
    except (SyntaxError, NameError, AttributeError, TypeError):  # a function torch does not print
        return lambda length: sympy_interp(PythonReferenceAnalysis, {symbol: length}, condition)
    except ArithmeticError:
        pass
    return function


def _lengths(least: int, most: int | None) -> Iterator[int]:
    most = min(most or _LONGEST, _LONGEST)
    near = {2**k + d for k in range(20) for d in (-1, 0, 1)}
    return iter(sorted(n for n in near.union(range(_EVERY)) if least <= n <= most))
