"""Reductions along axes of fixed size, as loops over scalar terms."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

from torch import fx
from tvm.tirx.script import builder as T

from graphwright.backends.regions.index import Index, unflatten
from graphwright.backends.regions.shapes import Arguments, refuse, shape_of
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.region_expressions import (
    cast,
    constant,
    dtype_name,
    largest,
    smallest,
)
from graphwright.backends.tvm.kernels.vector import vexp

__all__ = ["REDUCTIONS"]


class Scope(Protocol):
    """What reductions need of region_values.Values."""

    def of(self, node: Any, indices: list[Index]) -> Expr: ...

    def bind(self, value: Expr) -> Expr: ...

    def reduce(
        self, key: tuple[Any, ...], indices: list[Index], count: int, start: Expr,
        combine: Callable[[Expr, Expr], Expr], term: Callable[[Index], Expr],
    ) -> Expr: ...  # fmt: skip


class _Reduction:
    """One reduction of `node` for the result element `indices`: the element (j) of the source."""

    def __init__(self, node: fx.Node, given: Arguments, indices: list[Index]) -> None:
        self.source = given["self"]
        shape = shape_of(self.source)
        dims = given.get("dim")
        dims = [dims] if isinstance(dims, int) else (dims or range(len(shape)))
        self.axes = sorted(dim % len(shape) for dim in dims)
        sizes = [shape[axis] for axis in self.axes]
        if None in sizes:
            raise refuse(node, "reduces the rows")
        self.sizes = [int(size) for size in sizes if size is not None]
        self.count = math.prod(self.sizes)
        kept = iter(indices)
        same = len(indices) == len(shape)
        self.indices: list[Index | None] = []
        for axis in range(len(shape)):
            own = next(kept) if same or axis not in self.axes else None
            self.indices.append(None if axis in self.axes else own)
        self.dtype = dtype_name(node.meta["val"].dtype)
        self.node = node

    def term(self, scope: Scope, j: Index) -> Expr:
        digits = iter(unflatten(j, self.sizes))
        at = [next(digits) if index is None else index for index in self.indices]
        return cast(scope.of(self.source, at), self.dtype)

    def run(
        self, scope: Scope, kind: str, start: float, combine: Callable[[Expr, Expr], Expr],
        change: Callable[[Expr], Expr] = lambda term: term,
    ) -> Expr:  # fmt: skip
        fixed = [index for index in self.indices if index is not None]

        def term(j: Index) -> Expr:
            return change(scope.bind(self.term(scope, j)))

        key = (kind, self.source, self.dtype, *self.axes, *self.indices)
        return scope.reduce(key, fixed, self.count, constant(start, self.dtype), combine, term)

    def total(self, scope: Scope) -> Expr:
        return self.run(scope, "sum", 0, operator.add)

    def mean(self, scope: Scope) -> Expr:
        return scope.bind(self.total(scope) * constant(1 / self.count, self.dtype))

    def highest(self, scope: Scope) -> Expr:
        lowest = -math.inf if self.dtype.startswith("float") else -(2**31)
        return self.run(scope, "max", lowest, largest)


def _sum(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    return _Reduction(node, given, indices).total(scope)


def _mean(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    return _Reduction(node, given, indices).mean(scope)


def _amax(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    return _Reduction(node, given, indices).highest(scope)


def _amin(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    reduction = _Reduction(node, given, indices)
    highest = math.inf if reduction.dtype.startswith("float") else 2**31 - 1
    return reduction.run(scope, "min", highest, smallest)


def _softmax(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    reduction = _Reduction(node, given, indices)
    top = reduction.highest(scope)
    total = reduction.run(scope, "softmax", 0, operator.add, lambda x: vexp(x - top, 1))
    own = cast(scope.of(reduction.source, indices), reduction.dtype)
    return vexp(own - top, 1) / total


def _var(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    reduction = _Reduction(node, given, indices)

    def squared(x: Expr) -> Expr:
        away = scope.bind(x - reduction.mean(scope))
        return away * away

    correction = 1 if given["correction"] is None else given["correction"]
    left = max(0.0, reduction.count - correction)
    squares = reduction.run(scope, "squares", 0, operator.add, squared)
    return squares / constant(left, reduction.dtype)


def _norm(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    if given["ord"] != 2:
        raise refuse(node, f"has order {given['ord']}, not 2")
    reduction = _Reduction(node, given, indices)
    return T.sqrt(reduction.run(scope, "norm", 0, operator.add, lambda x: x * x))


REDUCTIONS: dict[str, Callable[[Any, fx.Node, Arguments, list[Index]], Expr]] = {
    "sum.dim_IntList": _sum,
    "mean.dim": _mean,
    "amax.default": _amax,
    "amin.default": _amin,
    "softmax.int": _softmax,
    "_softmax.default": _softmax,
    "var.correction": _var,
    "linalg_vector_norm.default": _norm,
}
