"""The values of a tile of a region's nodes, as lines of source over its inputs.

`Values.of` walks from a node to the inputs; shape ops only rewrite indices (backends/regions/), so
no intermediate value is stored. Everything is straight-line code: a reduction opens an axis of the
tile for its terms and closes it. What was computed once is found again by node and indices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from graphwright.backends.regions.index import Index, Variable, flatten
from graphwright.backends.regions.shapes import (
    MOVES,
    Arguments,
    Piece,
    arguments,
    broadcast,
    pieces,
    refuse,
    shape_of,
)
from graphwright.backends.triton.kernels.sizes import next_power_of_two
from graphwright.backends.triton.regions.expressions import (
    COMPARISONS,
    CONDITIONS,
    POINTWISE,
    cast,
    dtype_name,
)
from graphwright.backends.triton.regions.reductions import REDUCTIONS
from graphwright.backends.triton.regions.text import INT32, Axis, Text, call, literal
from graphwright.ir.layout import row_axis

__all__ = ["LONGEST", "Inputs", "Values"]

LONGEST = 65536  # terms of a reduction, or of two inside each other, that a program can hold
_OPERANDS = frozenset({"self", "other"})  # numbers given for these are constants of the op's type
_FILLS = {"zeros": 0, "ones": 1, "zeros_like": 0, "ones_like": 1, "new_zeros": 0, "new_ones": 1}


@dataclass(frozen=True)
class Inputs:
    """Names of the placeholders' pointers, and how far apart their rows are."""

    names: Mapping[fx.Node, str]
    strides: Mapping[fx.Node, int]


@dataclass
class Values:
    """The lines of one section of a kernel. reduced: terms of the largest reduction so far that
    each column has of its own; shared: of the largest that all columns share.
    """

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

    def of(self, node: Any, indices: list[Index]) -> Text:
        """The elements of `node` at `indices`. Raises BackendError naming a node."""
        found: Text = self.recall((node, *indices), lambda: self.bind(self._compute(node, indices)))
        return found

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

    def _compute(self, node: fx.Node, indices: list[Index]) -> Text:
        if node.op == "placeholder":
            return self._load(node, indices)
        if node.op != "call_function" or getattr(node.target, "namespace", "") != "aten":
            raise refuse(node, "is no aten op")
        overload = str(node.target).removeprefix("aten.")
        name, given = overload.split(".")[0], arguments(node)
        dtype = dtype_name(node.meta["val"].dtype)
        if overload in MOVES:
            return self.of(node.args[0], MOVES[overload](node, given, indices))
        if (parts := pieces(node)) is not None:
            return self._join(node, indices, *parts)
        if overload in REDUCTIONS:
            return REDUCTIONS[overload](self, node, given, indices)
        if name in ("embedding", "index_select", "index", "gather"):
            return self._gather(node, name, given, indices)
        if name in ("full", "full_like"):
            return literal(given["fill_value"], dtype)
        if name == "scalar_tensor":
            return literal(given["s"], dtype)
        if name in _FILLS:
            return literal(_FILLS[name], dtype)
        if name in POINTWISE:
            return self._pointwise(node, name, given, indices, dtype)
        raise refuse(node, "is not an op that regions know")

    def _load(self, node: fx.Node, indices: list[Index]) -> Text:
        value = node.meta["val"]
        axis = row_axis(value)
        if axis is None:
            position = flatten(indices, [int(size) for size in value.shape])
        else:
            sizes = [int(size) for size in value.shape[axis + 1 :]]
            row = indices[axis] * self.inputs.strides[node]
            position = row + flatten(indices[axis + 1 :], sizes)
        at = position.expr(INT32)
        mask = self.mask(at.axes)
        other = "" if mask is None else f", mask={mask.code}, other=0"
        dtype = dtype_name(value.dtype)
        loaded = f"tl.load({self.inputs.names[node]} + {at.code}{other})"
        if dtype == "bool":
            return Text(f"({loaded} != 0)", at.axes, dtype)
        return Text(f"{loaded}.to(tl.{dtype})", at.axes, dtype)

    def _join(
        self, node: fx.Node, indices: list[Index], axis: int, parts: list[Piece], filler: float
    ) -> Text:
        """One of the parts by the index; when that is not known, all of them and a selection."""
        index, dtype = indices[axis], dtype_name(node.meta["val"].dtype)
        low, high = index.bounds()
        near = [p for p in parts if p.first <= high and p.first + p.size > low]

        def value(part: Piece) -> Text:
            if part.source is None:
                return literal(filler, dtype)
            local = index + -part.first
            if len(near) > 1:
                key = ("clamped", index, part.first, part.size)

                def clamped() -> Index:
                    bounds = f"tl.minimum(tl.maximum({{0}}, 0), {part.size - 1})"
                    inside = self.bind(call(bounds, self.bind(local.expr(INT32))))
                    return self.variable(0, part.size - 1, inside)

                local = self.recall(key, clamped)
            own = [local] * (not part.stacked)
            return cast(self.of(part.source, [*indices[:axis], *own, *indices[axis + 1 :]]), dtype)

        total = value(near[-1])
        for part in near[-2::-1]:
            at = index.expr(INT32)
            choice = f"tl.where({{0}} < {part.first + part.size}, {{1}}, {{2}})"
            total = self.bind(call(choice, at, value(part), total, dtype=dtype))
        return total

    def _gather(self, node: fx.Node, name: str, given: Arguments, indices: list[Index]) -> Text:
        source: Any = given.get("self")
        number: Any = given.get("index")
        axis = int(given.get("dim") or 0)
        if name == "embedding":
            source, number = given["weight"], given["indices"]
        elif name == "index":
            used = [i for i, each in enumerate(given["indices"]) if each is not None]
            if len(used) != 1:
                raise refuse(node, f"gathers along {len(used)} axes at once")
            axis, number = used[0], given["indices"][used[0]]
        axis %= len(shape_of(source))
        size = shape_of(source)[axis]
        if size is None:
            raise refuse(node, "gathers rows")
        count = number.meta["val"].dim()
        at = indices if name == "gather" else indices[axis : axis + count]

        def chosen() -> Index:
            found = self.bind(cast(self.of(number, at), "int32"))
            if name == "index":
                found = self.bind(call(f"tl.where({{0}} < 0, {{0}} + {size}, {{0}})", found))
            return self.variable(0, size - 1, found)

        position = self.recall(("gathered", number, size, name, *at), chosen)
        skipped = 1 if name == "gather" else count
        return self.of(source, [*indices[:axis], position, *indices[axis + skipped :]])

    def _pointwise(
        self, node: fx.Node, name: str, given: Arguments, indices: list[Index], dtype: str
    ) -> Text:
        if name in COMPARISONS:
            dtype = "bool" if name.startswith("logical") else self._common(node, given)
        operands: Arguments = {}
        for key, value in given.items():
            own = "bool" if (name, key) in CONDITIONS else dtype
            if isinstance(value, fx.Node):
                operands[key] = self._settled(cast(self._operand(value, indices), own))
            elif isinstance(value, (bool, int, float)) and (
                key in _OPERANDS or (name, key) == ("masked_fill", "value")
            ):
                operands[key] = literal(value, own)
            else:
                operands[key] = value
        texts = [each for each in operands.values() if isinstance(each, Text)]
        if all(each.is_literal for each in texts):  # Python would compute it, and differently
            first = next(k for k, each in operands.items() if isinstance(each, Text))
            made = f"tl.full((), {operands[first].code}, tl.{operands[first].dtype})"
            operands[first] = self.bind(Text(made, (), operands[first].dtype))
        result = POINTWISE[name](operands)
        return Text(result.code, result.axes, dtype_name(node.meta["val"].dtype))

    def _settled(self, value: Text) -> Text:
        return self.bind(value)

    def _operand(self, node: fx.Node, indices: list[Index]) -> Text:
        if isinstance(node.meta["val"], torch.Tensor):
            return self.of(node, broadcast(indices, shape_of(node)))
        if node.target is torch.ops.aten.sym_size.int:
            return Text("rows", (), "int32")
        raise refuse(node, "is no tensor")

    @staticmethod
    def _common(node: fx.Node, given: Arguments) -> str:
        """The type in which a comparison is made, by torch's promotion."""
        sides: list[Any] = [
            side.meta["val"] if isinstance(side, fx.Node) else side
            for side in (given["self"], given.get("other", given["self"]))
        ]
        dtype = dtype_name(torch.result_type(*sides))
        return "int32" if dtype == "bool" else dtype
