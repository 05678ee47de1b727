"""Expressions of generated source: text with the axes of the tile that it varies along.

A kernel computes tiles. An `Axis` is one dimension of a tile: the columns of a row that a program
writes, or the terms of a reduction. A value that varies along some axes only has only those as
dimensions; where values meet, `[:, None]` and the like bring them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["INT32", "Axis", "Text", "call", "literal", "union"]


@dataclass(frozen=True, order=True)
class Axis:
    """`number` orders axes; `size` is a name or a power of two; `mask` is what lies inside."""

    number: int
    name: str
    size: str
    mask: str | None

    @property
    def padded(self) -> bool:
        """Are there places of the tile beyond the axis's end?"""
        return self.mask is not None


@dataclass(frozen=True)
class Text:
    """An expression, atomic or in brackets; dtype is torch's name of its element type."""

    code: str
    axes: tuple[Axis, ...] = ()
    dtype: str = "int32"
    is_literal: bool = False

    def __add__(self, other: Text | int) -> Text:
        return _infix("+", self, other)

    def __mul__(self, other: Text | int) -> Text:
        return _infix("*", self, other)

    def along(self, axes: Sequence[Axis]) -> str:
        """The code as a tile with these dimensions."""
        if not self.axes or tuple(axes) == self.axes:
            return self.code
        marks = ", ".join(":" if axis in self.axes else "None" for axis in axes)
        return f"{self.code}[{marks}]"


def union(*values: Text) -> tuple[Axis, ...]:
    """All axes of the values, in order."""
    return tuple(sorted({axis for value in values for axis in value.axes}))


def literal(value: float, dtype: str) -> Text:
    """A Python number in the source, where a value of `dtype` is wanted."""
    if dtype == "bool":
        return Text(str(bool(value)), (), dtype, True)
    if not dtype.startswith("float"):
        return Text(str(int(value)), (), dtype, True)
    number = float(value)
    finite = number == number and abs(number) != float("inf")
    code = repr(number) if finite else f'float("{number}")'
    return Text(code if number >= 0 or not finite else f"({code})", (), dtype, True)


def call(template: str, *values: Text, dtype: str | None = None) -> Text:
    """`template` with {0}, {1}, … filled by the values, brought to the same axes."""
    axes = union(*values)
    code = template.format(*(value.along(axes) for value in values))
    return Text(code, axes, dtype or values[0].dtype)


def _infix(operator: str, left: Text, right: Text | int) -> Text:
    other = right if isinstance(right, Text) else Text(str(right))
    dtype = "int64" if "int64" in (left.dtype, other.dtype) else left.dtype
    return call(f"({{0}} {operator} {{1}})", left, other, dtype=dtype)


class _Int32:
    """How the arithmetic of indices is written; they are never negative."""

    @staticmethod
    def constant(value: int) -> Text:
        return Text(str(value), (), "int32", True)

    @staticmethod
    def divide(value: Text, divisor: int) -> Text:
        return call(f"({{0}} // {divisor})", value)

    @staticmethod
    def modulo(value: Text, divisor: int) -> Text:
        return call(f"({{0}} % {divisor})", value)


INT32 = _Int32()
