"""Reductions along axes of fixed size, as loops over scalar terms."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

from torch import fx
from tvm.tirx.script import builder as T

from graphwright.backends.regions.index import Index
from graphwright.backends.regions.reduced import Reduced
from graphwright.backends.regions.shapes import Arguments, refuse
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.region_expressions import cast, constant, largest, smallest
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
    """One reduction of `node` for the result element `indices`."""

    def __init__(self, node: fx.Node, given: Arguments, indices: list[Index]) -> None:
        self.of = Reduced.of(node, given, indices)

    def run(
        self, scope: Scope, kind: str, start: float, combine: Callable[[Expr, Expr], Expr],
        change: Callable[[Expr], Expr] = lambda term: term,
    ) -> Expr:  # fmt: skip
        of = self.of

        def term(number: Index) -> Expr:
            return change(scope.bind(cast(scope.of(of.source, of.term(number)), of.dtype)))

        first = constant(start, of.dtype)
        return scope.reduce(of.key(kind), of.fixed, of.count, first, combine, term)

    def total(self, scope: Scope) -> Expr:
        return self.run(scope, "sum", 0, operator.add)

    def mean(self, scope: Scope) -> Expr:
        return scope.bind(self.total(scope) * constant(1 / self.of.count, self.of.dtype))

    def highest(self, scope: Scope) -> Expr:
        return self.run(scope, "max", self.of.lowest, largest)


def _sum(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    return _Reduction(node, given, indices).total(scope)


def _mean(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    return _Reduction(node, given, indices).mean(scope)


def _amax(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    return _Reduction(node, given, indices).highest(scope)


def _amin(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    reduction = _Reduction(node, given, indices)
    return reduction.run(scope, "min", reduction.of.highest, smallest)


def _softmax(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    reduction = _Reduction(node, given, indices)
    top = reduction.highest(scope)
    total = reduction.run(scope, "softmax", 0, operator.add, lambda x: vexp(x - top, 1))
    own = cast(scope.of(reduction.of.source, indices), reduction.of.dtype)
    return vexp(own - top, 1) / total


def _var(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Expr:
    reduction = _Reduction(node, given, indices)

    def squared(x: Expr) -> Expr:
        away = scope.bind(x - reduction.mean(scope))
        return away * away

    correction = 1 if given["correction"] is None else given["correction"]
    left = max(0.0, reduction.of.count - correction)
    squares = reduction.run(scope, "squares", 0, operator.add, squared)
    return squares / constant(left, reduction.of.dtype)


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
