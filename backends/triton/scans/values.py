"""The values of one token of a recurrence as tiles in registers, in lines of Triton source.

What does not depend on the token is computed in front of the loop over tokens (`setup`). A stored
value that is read at its own indices is there; at others, numbers change threads: columns of short
axes are selected, anything else is gathered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.backends.regions.index import Index, flatten, unflatten
from graphwright.backends.regions.operands import dtype_name
from graphwright.backends.regions.reduced import Reduced
from graphwright.backends.regions.shapes import arguments
from graphwright.backends.scans.body import is_reduction
from graphwright.backends.scans.reads import static_sizes
from graphwright.backends.scans.stages import Place, Stage
from graphwright.backends.triton.regions.expressions import cast
from graphwright.backends.triton.regions.text import INT32, Axis, Text, call, literal
from graphwright.backends.triton.regions.values import Inputs, Values
from graphwright.backends.triton.scans.layout import Layout, Loop

__all__ = ["RowLoad", "ScanValues"]

aten = torch.ops.aten
_SHORT = 8  # elements of an axis whose columns are selected one by one
_NAME = re.compile(r"[A-Za-z_]\w*")
ZERO = Index(frozenset())


@dataclass(frozen=True)
class RowLoad:
    """`name` holds what a token has at `place` elements behind `pointer` + token * stride, which is
    loaded while the token before is computed."""

    name: str
    pointer: str
    stride: int
    place: str
    mask: str | None


class ScanValues(Values):
    """inputs: the pointers of rows and weights, and strides of rows. The states before the token
    are s0, s1, …; `lines` are computed for each token."""

    def __init__(self, layout: Layout, inputs: Inputs) -> None:
        super().__init__(inputs)
        self.layout = layout
        self.setup: list[str] = []
        self.rows: list[RowLoad] = []
        self._varying = {"token"}
        self._stages = {stage.place: stage for stage in layout.stages.order}
        self._loops: list[tuple[Axis | None, Index]] = []
        self._within: dict[Axis, tuple[Text, int]] = {}  # (index inside the tile, size)
        self._write_axes()

    def _write_axes(self) -> None:
        """The index along each axis: i0, i1, …"""
        cut = [number for number, axis in enumerate(self.layout.axes) if axis.cut]
        left = self.layout.programs
        for number, each in enumerate(self.layout.axes):
            name, axis, inside = f"i{number}", None, f"tl.arange(0, {each.block})"
            first = None
            if each.cut and each.count > 1:
                left //= each.count
                first = "part" if left == 1 else f"(part // {left})"
                if number != cut[0] or left * each.count != self.layout.programs:
                    first = f"({first} % {each.count})"
            if each.block == 1:
                self.setup.append(f"{name} = {first or 0}")
            else:
                start = f"{first} * {each.block} + " if first else ""
                self.setup.append(f"{name} = {start}{inside}")
                covered = each.block * each.count == each.size
                axis = self.axis(
                    name, str(each.block), None if covered else f"{name} < {each.size}"
                )
                self._within[axis] = Text(inside if first else name, (axis,)), each.size
            axes = () if axis is None else (axis,)
            self._loops.append((axis, self.variable(0, each.size - 1, Text(name, axes))))

    # ---- tiles

    def place(self, place: Place) -> tuple[Index, tuple[Axis, ...]]:
        """(the position in it of each element of the tile, the tile's axes)."""
        sizes = self.layout.stages.sizes[place]
        kept = [self._loop((place, "kept", dim)) for dim in range(len(sizes))]
        axes = sorted(axis for axis, _ in kept if axis is not None)
        return flatten([index for _, index in kept], sizes), tuple(axes)

    def tile(self, place: Place) -> Text:
        """What the token stores there."""
        found: Text = self.recall(("tile", place), lambda: self._stage(self._stages[place]))
        return found

    def old_state(self, number: int) -> Text:
        """A state before the token."""
        self._varying.add(f"s{number}")
        return Text(f"s{number}", self.place(Place("state", number))[1], "float32")

    def varies(self, value: Text) -> bool:
        """Does it depend on the token?"""
        return not self._varying.isdisjoint(_NAME.findall(value.code))

    def _loop(self, loop: Loop) -> tuple[Axis | None, Index]:
        number = self.layout.along.get(loop)
        return (None, ZERO) if number is None else self._loops[number]

    def _stage(self, stage: Stage) -> Text:
        indices = unflatten(self.place(stage.place)[0], static_sizes(stage.node))
        dtype = "float32"
        if stage.place.kind == "scratch":
            dtype = dtype_name(stage.node.meta["val"].dtype)
        if stage.copied:
            value = self.of(stage.node, indices)
        elif is_reduction(stage.node):
            value = self._reduced(stage, indices)
        else:
            value = self.compute(stage.node, indices)
        return self.bind(cast(value, dtype))

    def _reduced(self, stage: Stage, indices: list[Index]) -> Text:
        node = stage.node
        of = Reduced.of(node, arguments(node), indices)
        kinds: Mapping[Any, tuple[str, float]] = {
            aten.sum.dim_IntList: ("tl.sum", 0),
            aten.amax.default: ("tl.max", of.lowest),
            aten.amin.default: ("tl.min", of.highest),
        }
        function, start = kinds[node.target]
        loops = [self._loop((stage.place, "term", dim)) for dim in range(len(of.sizes))]
        number = flatten([index for _, index in loops], of.sizes)
        term = self.bind(cast(self.of(of.source, of.term(number)), of.dtype))
        axes = sorted(axis for axis, _ in loops if axis is not None)
        for axis in axes:
            if axis not in term.axes:  # every term is the same: spread it along the axis
                term = call("({0} + {1} * 0)", term, Text(axis.name, (axis,)))
        if (mask := self.mask(tuple(axes))) is not None:
            beyond = literal(start, of.dtype)
            term = call("tl.where({0}, {1}, {2})", mask, self.bind(term), beyond, dtype=of.dtype)
        for axis in reversed(axes):
            term = self.bind(term)
            left = tuple(each for each in term.axes if each != axis)
            code = f"{function}({term.code}, axis={term.axes.index(axis)})"
            term = Text(code, left, of.dtype)
        return term

    # ---- reading them

    def of(self, node: Any, indices: list[Index]) -> Text:
        place = self.layout.stages.stored.get(node)
        if place is None:
            return super().of(node, indices)
        tile, position = self.tile(place), flatten(indices, static_sizes(node))
        found: Text = self.recall(
            (node, *indices), lambda: self.bind(self._read(place, tile, position))
        )
        return found

    def load(self, node: fx.Node, position: Index) -> Text:
        number = self.layout.stages.body.old_states.get(node)
        if number is not None:
            return self._read(Place("state", number), self.old_state(number), position)
        stride = self.inputs.strides.get(node)
        if stride is None:  # a weight
            return super().load(node, position)
        at = self.bind(position.expr(INT32))
        mask, dtype = self.mask(at.axes), dtype_name(node.meta["val"].dtype)
        pointer, inside = self.inputs.names[node], None if mask is None else mask.code
        if self.varies(at):  # chosen by what the token brings itself
            rest = "" if inside is None else f", mask={inside}, other=0"
            loaded = f"tl.load({pointer} + token * {stride} + {at.code}{rest})"
        else:
            loaded = f"x{len(self.rows)}"
            self.rows.append(RowLoad(loaded, pointer, stride, at.code, inside))
            self._varying.add(loaded)
        code = f"({loaded} != 0)" if dtype == "bool" else f"{loaded}.to(tl.{dtype})"
        return Text(code, at.axes, dtype)

    def bind(self, value: Text) -> Text:
        if value.is_literal or value.code.isidentifier():
            return value
        name = f"v{next(self._names)}"
        if self.varies(value):
            self._varying.add(name)
            self.lines.append(f"{name} = {value.code}")
        else:
            self.setup.append(f"{name} = {value.code}")
        return Text(name, value.axes, value.dtype)

    def _read(self, place: Place, tile: Text, position: Index) -> Text:
        """The element at `position` of a place whose tile is `tile`."""
        moved: dict[Axis, Text] = {}
        sizes = self.layout.stages.sizes[place]
        for dim, index in enumerate(unflatten(position, sizes)):
            axis, own = self._loop((place, "kept", dim))
            if index != own and axis in tile.axes:
                assert axis is not None
                moved[axis] = self.bind(index.expr(INT32))
        for axis, at in list(moved.items()):
            if not at.axes:  # the same for all
                tile = self._column(tile, axis, at.code)
                del moved[axis]
        if not moved:
            return tile
        if len(moved) == 1:
            ((axis, at),) = moved.items()
            if int(axis.size) <= _SHORT:
                return self._selected(tile, axis, at)
        return self._gathered(tile, moved)

    def _column(self, tile: Text, axis: Axis, at: str) -> Text:
        """The elements of a tile at one index along an axis."""

        def pick() -> Text:
            left = tuple(each for each in tile.axes if each != axis)
            here = Text(f"({axis.name} == {at})", (axis,), "bool")
            only = call("tl.where({0}, {1}, 0)", here, tile, dtype=tile.dtype)
            total = f"tl.sum({only.code}, axis={tile.axes.index(axis)})"
            return self.bind(Text(f"{total}.to(tl.{tile.dtype})", left, tile.dtype))

        found: Text = self.recall(("column", tile.code, axis, at), pick)
        return found

    def _selected(self, tile: Text, axis: Axis, at: Text) -> Text:
        """One of the columns for each element, by the index `at`."""
        columns = [self._column(tile, axis, str(i)) for i in range(self._within[axis][1])]
        found = columns[-1]
        for i, column in reversed(list(enumerate(columns[:-1]))):
            chosen = call(f"tl.where({{0}} <= {i}, {{1}}, {{2}})", at, column, found)
            found = self.bind(Text(chosen.code, chosen.axes, tile.dtype))
        return found

    def _gathered(self, tile: Text, moved: Mapping[Axis, Text]) -> Text:
        """Elements of a tile by their positions in it."""
        position, count = Text("0"), 1
        for axis in tile.axes:
            own = moved.get(axis, self._within[axis][0])
            position = position * int(axis.size) + own if position.axes else own
            count *= int(axis.size)
        if any(axis.padded for axis in position.axes):  # there it may be anywhere
            position = call(f"tl.minimum(tl.maximum({{0}}, 0), {count - 1})", position)
        position = self.bind(position)
        sizes = [int(axis.size) for axis in position.axes]
        shape, total = ", ".join(map(str, sizes)), 1
        for size in sizes:
            total *= size
        source = f"tl.reshape({tile.code}, [{count}])"
        where = f"tl.reshape({position.code}, [{total}])"
        code = f"tl.reshape(tl.gather({source}, {where}, axis=0), [{shape}])"
        return Text(code, position.axes, tile.dtype)
