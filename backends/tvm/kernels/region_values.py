"""The value of one element of a node of a region, as an expression over its inputs.

On the way from a node to the inputs it is emitted what must be computed before: a binding per
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

from torch import fx
from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.regions.evaluation import Evaluation
from graphwright.backends.regions.index import Index, Variable
from graphwright.backends.regions.operands import dtype_name
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.loops import quotient, remainder, settle
from graphwright.backends.tvm.kernels.region_expressions import POINTWISE, cast, constant
from graphwright.backends.tvm.kernels.region_reductions import REDUCTIONS

__all__ = ["INT32", "Inputs", "Values"]

ACCUMULATORS = 16  # partial results of a long reduction, so that its loop can be vectorized
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


class Values(Evaluation[Expr]):
    """Values of elements, in the scope of the loops that are open."""

    pointwise = POINTWISE
    reductions = REDUCTIONS

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

    # ---- how values are written

    def constant(self, number: Any, dtype: str) -> Expr:
        return constant(number, dtype)

    def cast(self, value: Expr, dtype: str) -> Expr:
        return cast(value, dtype)

    def load(self, node: fx.Node, position: Index) -> Expr:
        self.used.append(position)
        loaded = self.inputs.buffers[node][position.expr(INT32)]
        return cast(loaded, dtype_name(node.meta["val"].dtype))

    def stride(self, node: fx.Node) -> int:
        return self.inputs.strides[node]

    def row_count(self) -> Expr:
        return tirx.Cast("int64", self.inputs.rows)

    def clamped(self, index: Index, most: int) -> Expr:
        return tirx.max(tirx.min(index.expr(INT32), most), 0)

    def before(self, index: Index, end: int, yes: Expr, no: Expr) -> Expr:
        return tirx.Select(index.expr(INT32) < end, yes, no)

    def from_end(self, number: Expr, size: int) -> Expr:
        return tirx.Select(number < 0, number + size, number)

    def note_join(self, index: Index, bounds: list[int]) -> None:
        self.used.append(index)
        self.edges.extend((index, bound) for bound in bounds)
