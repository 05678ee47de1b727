"""The value of one element of a node of a region, as an expression over its inputs.

`Values.of` walks from a node to the inputs and emits what must be computed before: a binding per
value, a loop per reduction. A loop's body is walked twice. Looking ahead, nothing of the body is
emitted, but reductions that do not depend on the loop are, in front of it; the second walk then
finds them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from tvm import tirx
from tvm.tirx.script import builder as T

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
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.loops import quotient, remainder, settle
from graphwright.backends.tvm.kernels.region_expressions import (
    COMPARISONS,
    CONDITIONS,
    POINTWISE,
    cast,
    constant,
    dtype_name,
)
from graphwright.backends.tvm.kernels.region_reductions import REDUCTIONS
from graphwright.ir.layout import row_axis

__all__ = ["INT32", "Inputs", "Values"]

ACCUMULATORS = 16  # partial results of a long reduction, so that its loop can be vectorized
_OPERANDS = frozenset({"self", "other"})  # numbers given for these are constants of the op's type
_FILLS = {"zeros": 0, "ones": 1, "zeros_like": 0, "ones_like": 1, "new_zeros": 0, "new_ones": 1}
Key = tuple[Any, ...]


class _Int32:
    """How indices are written in TIR."""

    @staticmethod
    def constant(value: int) -> Expr:
        return tirx.const(value, "int32")

    divide = staticmethod(quotient)
    modulo = staticmethod(remainder)


INT32 = _Int32()


@dataclass(frozen=True)
class Inputs:
    """The placeholders' memory, how far apart their rows are, and the number of rows."""

    buffers: Mapping[fx.Node, Expr]
    strides: Mapping[fx.Node, int]
    rows: Expr


class Values:
    """Values of elements, in the scope of the loops that are open."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.used: list[Index] = []  # the indices that were read or compared, for planning
        self.edges: list[tuple[Index, int]] = []  # (index, value at which another input takes over)
        self._numbers = itertools.count()
        self._known: list[dict[Key, Any]] = [{}]
        self._ahead = False
        self._present = 1  # so many of `_known` are not of the look ahead
        self._future: set[Variable] = set()  # of loops not yet open: in no statement

    def variable(self, low: float, high: float, expr: Expr) -> Index:
        """A new index variable in [low, high]."""
        made = Variable(next(self._numbers), low, high, expr)
        if self._ahead:
            self._future.add(made)
        return Index(frozenset({(made, 1)}))

    @contextmanager
    def looking_ahead(self) -> Iterator[None]:
        """For walking the body of a loop that is about to be opened."""
        before = self._ahead, self._present
        if not self._ahead:
            self._present = len(self._known)
        self._ahead = True
        with self.inside():
            yield
        self._ahead, self._present = before

    @contextmanager
    def inside(self) -> Iterator[None]:
        """For emitting the body of an open loop."""
        self._known.append({})
        yield
        self._known.pop()

    def bind(self, value: Expr) -> Expr:
        """`value` computed once and here, so that it may be used twice."""
        if isinstance(value, (tirx.IntImm, tirx.FloatImm, tirx.Var)):
            return value
        dtype = str(value.ty.dtype)
        return T.var(dtype) if self._ahead else settle(value, dtype)

    def recall(self, key: Key, compute: Callable[[], Any]) -> Any:
        """compute(), or what it gave for the same key in this scope."""
        for known in self._known:
            if key in known:
                return known[key]
        value = compute()
        self._known[-1][key] = value
        return value

    def of(self, node: Any, indices: list[Index]) -> Expr:
        """The element of `node` at `indices`, in its dtype. Raises BackendError naming a node."""
        return self.recall((node, *indices), lambda: self.bind(self._compute(node, indices)))

    def reduce(
        self, key: Key, indices: list[Index], count: int, start: Expr,
        combine: Callable[[Expr, Expr], Expr], term: Callable[[Index], Expr],
    ) -> Expr:  # fmt: skip
        """`combine` over term(0 .. count - 1), from `start`; the terms depend on `indices` too."""

        def compute() -> Expr:
            atoms = {atom for index in indices for atom in index.atoms()}
            if not self._ahead:
                return self._emit_reduction(count, start, combine, term)
            if atoms & self._future:
                term(self.variable(0, count - 1, T.var("int32")))
                return T.var(str(start.ty.dtype))
            hidden, self._known = self._known, self._known[: self._present]
            self._ahead = False
            value = self._emit_reduction(count, start, combine, term)
            self._known[-1][key] = value
            self._known, self._ahead = hidden, True
            return value

        return self.recall(key, compute)

    def _emit_reduction(
        self, count: int, start: Expr, combine: Callable[[Expr, Expr], Expr],
        term: Callable[[Index], Expr],
    ) -> Expr:  # fmt: skip
        dtype = str(start.ty.dtype)
        width = ACCUMULATORS if count >= 2 * ACCUMULATORS else 1
        partial, (total,) = registers(1, width, dtype)[0], registers(1, 1, dtype)
        with self.looking_ahead():
            term(self.variable(0, count - 1, T.var("int32")))

        def accumulate(lane: Expr, number: Expr) -> None:
            with self.inside():
                value = combine(partial[lane], term(self.variable(0, count - 1, number)))
                T.buffer_store(partial, value, [lane])

        with T.serial(0, width) as lane:
            T.buffer_store(partial, start, [lane])
        with T.serial(0, count // width) as turn, T.serial(0, width) as lane:
            accumulate(lane, T.bind(turn * width + lane))
        if count % width:
            with T.serial(0, count % width) as lane:
                accumulate(lane, T.bind(lane + (count - count % width)))
        T.buffer_store(total, partial[0], [0])
        with T.serial(0, width - 1) as lane:
            T.buffer_store(total, combine(total[0], partial[lane + 1]), [0])
        return total[0]

    def _compute(self, node: fx.Node, indices: list[Index]) -> Expr:
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
            return constant(given["fill_value"], dtype)
        if name == "scalar_tensor":
            return constant(given["s"], dtype)
        if name in _FILLS:
            return constant(_FILLS[name], dtype)
        if name in POINTWISE:
            return self._pointwise(node, name, given, indices, dtype)
        raise refuse(node, "is not an op that regions know")

    def _load(self, node: fx.Node, indices: list[Index]) -> Expr:
        value = node.meta["val"]
        axis = row_axis(value)
        if axis is None:
            position = flatten(indices, [int(size) for size in value.shape])
        else:
            sizes = [int(size) for size in value.shape[axis + 1 :]]
            row = indices[axis] * self.inputs.strides[node]
            position = row + flatten(indices[axis + 1 :], sizes)
        self.used.append(position)
        return cast(self.inputs.buffers[node][position.expr(INT32)], dtype_name(value.dtype))

    def _join(
        self, node: fx.Node, indices: list[Index], axis: int, parts: list[Piece], filler: float
    ) -> Expr:
        """One of the parts by the index; when that is not known, all of them and a selection."""
        index, dtype = indices[axis], dtype_name(node.meta["val"].dtype)
        low, high = index.bounds()
        near = [p for p in parts if p.first <= high and p.first + p.size > low]
        self.used.append(index)
        self.edges.extend((index, part.first) for part in near[1:])

        def value(part: Piece) -> Expr:
            if part.source is None:
                return constant(filler, dtype)
            local = index + -part.first
            if len(near) > 1:
                inside = tirx.max(tirx.min(local.expr(INT32), part.size - 1), 0)
                key = ("clamped", index, part.first, part.size)
                local = self.recall(key, lambda: self.variable(0, part.size - 1, self.bind(inside)))
            own = [local] * (not part.stacked)
            found = self.of(part.source, [*indices[:axis], *own, *indices[axis + 1 :]])
            return cast(found, dtype)

        total = value(near[-1])
        for part in near[-2::-1]:
            before = index.expr(INT32) < part.first + part.size
            total = tirx.Select(before, value(part), total)
        return total

    def _gather(self, node: fx.Node, name: str, given: Arguments, indices: list[Index]) -> Expr:
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
        size = shape_of(source)[axis]
        if size is None:
            raise refuse(node, "gathers rows")
        count = number.meta["val"].dim()
        at = indices if name == "gather" else indices[axis : axis + count]

        def chosen() -> Index:
            found = self.bind(tirx.Cast("int32", self.of(number, at)))
            if name == "index":
                found = self.bind(tirx.Select(found < 0, found + size, found))
            return self.variable(0, size - 1, found)

        position = self.recall(("gathered", number, size, *at), chosen)
        skipped = 1 if name == "gather" else count
        return self.of(source, [*indices[:axis], position, *indices[axis + skipped :]])

    def _pointwise(
        self, node: fx.Node, name: str, given: Arguments, indices: list[Index], dtype: str
    ) -> Expr:
        if name in COMPARISONS:
            dtype = "bool" if name.startswith("logical") else self._common(node, given)
        operands: Arguments = {}
        for key, value in given.items():
            own = "bool" if (name, key) in CONDITIONS else dtype
            if isinstance(value, fx.Node):
                operands[key] = self.bind(cast(self._operand(value, indices), own))
            elif isinstance(value, (bool, int, float)) and (
                key in _OPERANDS or (name, key) == ("masked_fill", "value")
            ):
                operands[key] = constant(value, own)
            else:
                operands[key] = value
        return POINTWISE[name](operands)

    def _operand(self, node: fx.Node, indices: list[Index]) -> Expr:
        if isinstance(node.meta["val"], torch.Tensor):
            return self.of(node, broadcast(indices, shape_of(node)))
        if node.target is torch.ops.aten.sym_size.int:
            return tirx.Cast("int64", self.inputs.rows)
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
