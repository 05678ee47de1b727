"""The values of a tile of a region's nodes, as lines of source over its inputs.

Everything is straight-line code: a reduction opens an axis of the tile for its terms and closes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from graphwright.backends.regions.evaluation import Evaluation
from graphwright.backends.regions.index import Index, Variable
from graphwright.backends.regions.operands import dtype_name
from graphwright.backends.regions.shapes import Arguments
from graphwright.backends.triton.kernels.sizes import next_power_of_two
from graphwright.backends.triton.regions.expressions import POINTWISE, cast
from graphwright.backends.triton.regions.reductions import REDUCTIONS
from graphwright.backends.triton.regions.text import INT32, Axis, Text, call, literal

__all__ = ["LONGEST", "Inputs", "Values"]

LONGEST = 65536  # terms of a reduction, or of two inside each other, that a program can hold


@dataclass(frozen=True)
class Inputs:
    """Names of the placeholders' pointers, and how far apart their rows are."""

    names: Mapping[fx.Node, str]
    strides: Mapping[fx.Node, int]


@dataclass
class Values(Evaluation[Text]):
    """The lines of one section of a kernel. reduced: terms of the largest reduction so far that
    each column has of its own; shared: of the largest that all columns share.
    """

    pointwise = POINTWISE
    reductions = REDUCTIONS

    inputs: Inputs
    lines: list[str] = field(default_factory=list)
    reduced: int = 1
    shared: int = 1
    _known: dict[Any, Any] = field(default_factory=dict)
    _count: Any = field(default_factory=itertools.count)
    _names: Any = field(default_factory=itertools.count)
    _axes: dict[int, list[tuple[Axis, Index]]] = field(default_factory=dict)

    def variable(self, low: float, high: float, value: Text) -> Index:
        """A new index variable in [low, high]."""
        return Index(frozenset({(Variable(next(self._count), low, high, value), 1)}))

    def axis(self, name: str, size: str, mask: str | None) -> Axis:
        """A new axis of the tile."""
        return Axis(next(self._count), name, size, mask)

    def bind(self, value: Text) -> Text:
        """`value` under a name of its own, so that it may be used twice."""
        if value.is_literal or value.code.isidentifier():
            return value
        name = f"v{next(self._names)}"
        self.lines.append(f"{name} = {value.code}")
        return Text(name, value.axes, value.dtype)

    def recall(self, key: Any, compute: Any) -> Any:
        """compute(), or what it gave for the same key."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def terms(self, count: int, fixed: list[Index]) -> tuple[Axis, Index]:
        """An axis of `count` terms along which `fixed` do not vary: a known one, or a new one."""
        used = {
            axis
            for index in fixed
            for atom in index.atoms()
            if isinstance(atom, Variable)
            for axis in atom.expr.axes
        }
        for axis, index in self._axes.get(count, []):
            if axis not in used:
                return axis, index
        size, number = next_power_of_two(count), sum(map(len, self._axes.values()))
        name = f"r{number}"
        mask = f"{name} < {count}" if size > count else None
        axis = self.axis(name, str(size), mask)
        self.lines.append(f"{name} = tl.arange(0, {size})")
        index = self.variable(0, count - 1, Text(name, (axis,)))
        self._axes.setdefault(count, []).append((axis, index))
        return axis, index

    def mask(self, axes: tuple[Axis, ...]) -> Text | None:
        """Where a tile along these axes lies inside of all; None for everywhere."""
        parts = [Text(f"({axis.mask})", (axis,), "bool") for axis in axes if axis.padded]
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = call("({0} & {1})", total, part)
        return Text(total.along(axes), axes, "bool") if total.axes != axes else total

    def note_tile(self, value: Text) -> None:
        """Counts the terms that a tile like `value` holds, for each column or for all together."""
        total = math.prod(int(axis.size) for axis in value.axes if axis.size.isdigit())
        if all(axis.size.isdigit() for axis in value.axes):
            self.shared = max(self.shared, total)
        else:
            self.reduced = max(self.reduced, total)

    # ---- how values are written

    def constant(self, number: Any, dtype: str) -> Text:
        return literal(number, dtype)

    def cast(self, value: Text, dtype: str) -> Text:
        return cast(value, dtype)

    def load(self, node: fx.Node, position: Index) -> Text:
        at = position.expr(INT32)
        mask = self.mask(at.axes)
        other = "" if mask is None else f", mask={mask.code}, other=0"
        dtype = dtype_name(node.meta["val"].dtype)
        loaded = f"tl.load({self.inputs.names[node]} + {at.code}{other})"
        if dtype == "bool":
            return Text(f"({loaded} != 0)", at.axes, dtype)
        return Text(f"{loaded}.to(tl.{dtype})", at.axes, dtype)

    def stride(self, node: fx.Node) -> int:
        return self.inputs.strides[node]

    def row_count(self) -> Text:
        return Text("rows", (), "int32")

    def clamped(self, index: Index, most: int) -> Text:
        bounds = f"tl.minimum(tl.maximum({{0}}, 0), {most})"
        return call(bounds, self.bind(index.expr(INT32)))

    def before(self, index: Index, end: int, yes: Text, no: Text) -> Text:
        choice = f"tl.where({{0}} < {end}, {{1}}, {{2}})"
        return self.bind(call(choice, index.expr(INT32), yes, no, dtype=no.dtype))

    def from_end(self, number: Text, size: int) -> Text:
        return call(f"tl.where({{0}} < 0, {{0}} + {size}, {{0}})", number)

    def apply(self, name: str, operands: Arguments, dtype: str) -> Text:
        """A constant among operands is no tile; Python would compute it, and differently."""
        texts = [each for each in operands.values() if isinstance(each, Text)]
        if all(each.is_literal for each in texts):
            first = next(k for k, each in operands.items() if isinstance(each, Text))
            made = f"tl.full((), {operands[first].code}, tl.{operands[first].dtype})"
            operands[first] = self.bind(Text(made, (), operands[first].dtype))
        result = super().apply(name, operands, dtype)
        return Text(result.code, result.axes, dtype)
