"""Reductions along axes of fixed size: an axis of the tile that is opened, filled and closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import fx

from graphwright.backends.regions.index import Index
from graphwright.backends.regions.reduced import Reduced
from graphwright.backends.regions.shapes import Arguments, refuse
from graphwright.backends.triton.regions.expressions import cast
from graphwright.backends.triton.regions.text import Axis, Text, call, literal

__all__ = ["REDUCTIONS"]


class Scope(Protocol):
    """What reductions need of values.Values."""

    def of(self, node: Any, indices: list[Index]) -> Text: ...

    def bind(self, value: Text) -> Text: ...

    def recall(self, key: Any, compute: Callable[[], Any]) -> Any: ...

    def terms(self, count: int, fixed: list[Index]) -> tuple[Axis, Index]: ...

    def mask(self, axes: tuple[Axis, ...]) -> Text | None: ...

    def note_tile(self, value: Text) -> None: ...


class _Reduction:
    """One reduction of `node` for the result elements `indices`."""

    def __init__(self, scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> None:
        self.scope, self.of = scope, Reduced.of(node, given, indices)

    def run(
        self, kind: str, start: float, function: str,
        change: Callable[[Text], Text] = lambda term: term,
    ) -> Text:  # fmt: skip
        """`function` over the terms, those beyond the end being `start`."""

        def compute() -> Text:
            dtype = self.of.dtype
            axis, number = self.scope.terms(self.of.count, self.of.fixed)
            own = self.scope.of(self.of.source, self.of.term(number))
            own = self.scope.bind(cast(own, dtype))
            term = self.scope.bind(change(own))
            if axis not in term.axes:  # every term is the same: spread it along the axis
                term = self.scope.bind(call("({0} + {1} * 0)", term, Text(axis.name, (axis,))))
            if axis.padded:
                inside = Text(f"({axis.mask})", (axis,), "bool")
                beyond = literal(start, dtype)
                term = call("tl.where({0}, {1}, {2})", inside, term, beyond, dtype=dtype)
            self.scope.note_tile(term)
            place = term.axes.index(axis)
            left = tuple(each for each in term.axes if each != axis)
            return self.scope.bind(Text(f"{function}({term.code}, axis={place})", left, dtype))

        found: Text = self.scope.recall(self.of.key(kind), compute)
        return found

    def total(self) -> Text:
        return self.run("sum", 0, "tl.sum")

    def mean(self) -> Text:
        return self.scope.bind(call(f"({{0}} * {1 / self.of.count!r})", self.total()))

    def highest(self) -> Text:
        return self.run("max", self.of.lowest, "tl.max")


def _sum(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Text:
    return _Reduction(scope, node, given, indices).total()


def _mean(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Text:
    return _Reduction(scope, node, given, indices).mean()


def _amax(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Text:
    return _Reduction(scope, node, given, indices).highest()


def _amin(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Text:
    reduction = _Reduction(scope, node, given, indices)
    return reduction.run("min", reduction.of.highest, "tl.min")


def _softmax(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Text:
    reduction = _Reduction(scope, node, given, indices)
    top = reduction.highest()
    total = reduction.run(
        "softmax", 0, "tl.sum", lambda x: call("tl.exp({0} - {1})", x, top, dtype=x.dtype)
    )
    own = scope.bind(cast(scope.of(reduction.of.source, indices), reduction.of.dtype))
    return call("(tl.exp({0} - {1}) / {2})", own, top, total)


def _var(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Text:
    reduction = _Reduction(scope, node, given, indices)
    mean = reduction.mean()

    def squared(x: Text) -> Text:
        away = scope.bind(call("({0} - {1})", x, mean))
        return call("({0} * {0})", away)

    correction = 1 if given["correction"] is None else given["correction"]
    left = max(0.0, float(reduction.of.count - correction))
    return call(f"({{0}} / {left!r})", reduction.run("squares", 0, "tl.sum", squared))


def _norm(scope: Scope, node: fx.Node, given: Arguments, indices: list[Index]) -> Text:
    if given["ord"] != 2:
        raise refuse(node, f"has order {given['ord']}, not 2")
    reduction = _Reduction(scope, node, given, indices)
    squares = reduction.run("norm", 0, "tl.sum", lambda x: call("({0} * {0})", x))
    return call("tl.sqrt({0})", squares)


REDUCTIONS: dict[str, Callable[[Any, fx.Node, Arguments, list[Index]], Text]] = {
    "sum.dim_IntList": _sum,
    "mean.dim": _mean,
    "amax.default": _amax,
    "amin.default": _amin,
    "softmax.int": _softmax,
    "_softmax.default": _softmax,
    "var.correction": _var,
    "linalg_vector_norm.default": _norm,
}
