"""Integer index expressions of a region, kept in a normal form so that equal ones compare equal.

An index is Σ coefficient * atom + constant; an atom is a loop variable with a known range, or the
quotient or remainder of an index by a constant. Index values are never negative. The rules are
those that undo what reshapes do: flattening what was unflattened gives back the same index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Arithmetic", "Index", "Quotient", "Remainder", "Variable", "flatten", "unflatten"]


class Arithmetic(Protocol):
    """What a backend's int32 expressions need beside + and *, which are Python's."""

    def constant(self, value: int) -> Any: ...

    def divide(self, value: Any, divisor: int) -> Any: ...

    def modulo(self, value: Any, divisor: int) -> Any: ...


@dataclass(frozen=True)
class Variable:
    """An integer in [low, high]; `expr` is the backend's expression, int32, that holds it."""

    number: int
    low: float
    high: float
    expr: Any = field(compare=False, repr=False)


@dataclass(frozen=True)
class Quotient:
    """index // divisor."""

    index: Index
    divisor: int


@dataclass(frozen=True)
class Remainder:
    """index % divisor."""

    index: Index
    divisor: int


Atom = Variable | Quotient | Remainder
Terms = dict[Atom, int]


@dataclass(frozen=True)
class Index:
    """Σ coefficient * atom + constant."""

    terms: frozenset[tuple[Atom, int]]
    constant: int = 0

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.constant + other)
        total = dict(self.terms)
        for atom, coefficient in other.terms:
            total[atom] = total.get(atom, 0) + coefficient
        return _normal(total, self.constant + other.constant)

    def __mul__(self, factor: int) -> Index:
        if factor == 0:
            return Index(frozenset())
        return Index(frozenset((a, c * factor) for a, c in self.terms), self.constant * factor)

    def __floordiv__(self, divisor: int) -> Index:
        whole, rest = self._divided(divisor)
        low, high = rest.bounds()
        if low >= 0 and high < divisor:
            return whole
        common = math.gcd(divisor, *(c for _, c in rest.terms))
        reduced = Index(frozenset((a, c // common) for a, c in rest.terms), rest.constant // common)
        divisor //= common
        if divisor == 1:
            return whole + reduced
        if len(reduced.terms) == 1 and reduced.constant == 0:
            ((atom, coefficient),) = reduced.terms
            if isinstance(atom, Quotient) and coefficient == 1:
                return whole + atom.index // (atom.divisor * divisor)
        return whole + _single(Quotient(reduced, divisor))

    def __mod__(self, divisor: int) -> Index:
        _, rest = self._divided(divisor)
        low, high = rest.bounds()
        if low >= 0 and high < divisor:
            return rest
        common = math.gcd(divisor, *(c for _, c in rest.terms))
        reduced = Index(frozenset((a, c // common) for a, c in rest.terms), rest.constant // common)
        left = rest.constant % common
        divisor //= common
        if divisor == 1:
            return Index(frozenset(), left)
        if len(reduced.terms) == 1 and reduced.constant == 0:
            ((atom, coefficient),) = reduced.terms
            if isinstance(atom, Remainder) and coefficient == 1 and atom.divisor % divisor == 0:
                return atom.index % divisor * common + left
        return _single(Remainder(reduced, divisor)) * common + left

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        low = high = float(self.constant)
        for atom, coefficient in self.terms:
            ends = [end * coefficient for end in _bounds(atom)]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def atoms(self) -> Iterator[Atom]:
        """All atoms, those inside others too."""
        for atom, _ in self.terms:
            yield atom
            if not isinstance(atom, Variable):
                yield from atom.index.atoms()

    def coefficient(self, atom: Atom) -> int:
        """Of a direct term; 0 when there is none."""
        return dict(self.terms).get(atom, 0)

    def expr(self, arithmetic: Arithmetic) -> Any:
        """The backend's expression of it, int32."""
        ordered = sorted(self.terms, key=lambda term: (-abs(term[1]), repr(term[0])))
        total: Any = None
        for atom, coefficient in ordered:
            part = _expr(atom, arithmetic)
            part = part if coefficient == 1 else part * coefficient
            total = part if total is None else total + part
        if total is None:
            return arithmetic.constant(self.constant)
        return total + self.constant if self.constant else total

    def _divided(self, divisor: int) -> tuple[Index, Index]:
        """(w, r) with self = w * divisor + r, where w takes every term that allows it, and r is not
        negative: backends divide as they like below 0.
        """
        whole = {a: c // divisor for a, c in self.terms if c % divisor == 0}
        rest = Index(frozenset((a, c) for a, c in self.terms if c % divisor))
        constant = self.constant % divisor
        low, _ = rest.bounds()
        if -math.inf < low < -constant:
            constant += -int((low + constant) // divisor) * divisor
        return _normal(whole, (self.constant - constant) // divisor), rest + constant


def flatten(indices: Sequence[Index], sizes: Sequence[int]) -> Index:
    """The position in row-major order; the first size is not used."""
    total = Index(frozenset())
    for index, size in zip(indices, sizes, strict=True):
        total = total * size + index
    return total


def unflatten(position: Index, sizes: Sequence[int]) -> list[Index]:
    """The indices of a row-major position; the first size is not used."""
    found: list[Index] = []
    for axis in range(len(sizes) - 1, 0, -1):
        found.append(position % sizes[axis])
        position = position // sizes[axis]
    return [*([position] if sizes else []), *reversed(found)]


def _single(atom: Atom) -> Index:
    return Index(frozenset({(atom, 1)}))


def _normal(terms: Terms, constant: int) -> Index:
    """Drops zeros, and puts n * (x // n) + x % n together to x."""
    for atom, coefficient in terms.items():
        if isinstance(atom, Remainder) and coefficient:
            quotient = Quotient(atom.index, atom.divisor)
            if terms.get(quotient) == coefficient * atom.divisor:
                rest = {a: c for a, c in terms.items() if a not in (atom, quotient)}
                return _normal(rest, constant) + atom.index * coefficient
    return Index(frozenset((a, c) for a, c in terms.items() if c), constant)


def _bounds(atom: Atom) -> tuple[float, float]:
    if isinstance(atom, Variable):
        return atom.low, atom.high
    if isinstance(atom, Remainder):
        return 0, atom.divisor - 1
    low, high = atom.index.bounds()
    return low // atom.divisor, math.inf if high == math.inf else high // atom.divisor


def _expr(atom: Atom, arithmetic: Arithmetic) -> Any:
    if isinstance(atom, Variable):
        return atom.expr
    change = arithmetic.divide if isinstance(atom, Quotient) else arithmetic.modulo
    return change(atom.index.expr(arithmetic), atom.divisor)
