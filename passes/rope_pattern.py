"""The spellings of a rotary embedding, matched by hand: operands may stand in either order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of

__all__ = ["NoRopeError", "Rotation", "looks_like_rope", "match_rope"]

aten = torch.ops.aten


class NoRopeError(Exception):
    """Why something that looks like a rotary embedding is none."""


@dataclass(frozen=True)
class Rotation:
    """The first `size` channels of `x` turned by `cos` and `sin`, which have `size` values a token,
    or half of that when `halves`."""

    x: fx.Node
    cos: fx.Node
    sin: fx.Node
    size: int
    interleaved: bool
    halves: bool = False


@dataclass(frozen=True)
class _Part:
    """x[..., start : stop : step]"""

    x: fx.Node
    start: int
    stop: int
    step: int


def looks_like_rope(node: fx.Node) -> bool:
    """A sum with a rotated half, a join of two turned halves, or of a turned part and the rest."""
    try:
        return _match(node) is not None
    except NoRopeError:
        return True


def match_rope(node: fx.Node) -> Rotation:
    """The rotation that `node` computes. Raises NoRopeError."""
    found = _match(node)
    if found is None:
        raise NoRopeError("it has another form")
    return found


def _match(node: fx.Node) -> Rotation | None:
    if node.op != "call_function":
        return None
    whole = _match_sum(node) or _match_halves(node)
    if whole is not None:
        # A rotated slice that is joined with the rest again is matched at the join.
        users = list(node.users)
        if len(users) == 1 and _match_partial(users[0]) is not None:
            return None
        return whole
    return _match_partial(node)


def _match_partial(node: fx.Node) -> Rotation | None:
    """cat(rope(x[..., :R]), x[..., R:])"""
    parts = _joined(node)
    if parts is None or len(parts) != 2:
        return None
    inner = _match_sum(parts[0]) or _match_halves(parts[0])
    rest = _part(parts[1])
    if inner is None or rest is None or len(parts[0].users) != 1:
        return None
    turned = _part(inner.x)
    channels = rest.x.meta["val"].shape[-1]
    if turned is None or turned.x is not rest.x or (turned.start, turned.step) != (0, 1):
        return None
    if turned.stop != rest.start or rest.stop != channels or rest.step != 1:
        return None
    return Rotation(rest.x, inner.cos, inner.sin, inner.size, inner.interleaved, inner.halves)


def _match_sum(node: fx.Node) -> Rotation | None:
    """x * cos + rotate(x) * sin"""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    for plain, turned in (node.args[:2], node.args[1::-1]):
        if not (_is(plain, aten.mul.Tensor) and _is(turned, aten.mul.Tensor)):
            return None
        for rotated, sin in (turned.args[:2], turned.args[1::-1]):  # type: ignore[union-attr]
            found = _rotated(rotated)
            if found is None:
                continue
            x, interleaved = found
            if x not in plain.args:  # type: ignore[union-attr]
                raise NoRopeError(f"'{rotated}' turns '{x}', which '{plain}' does not take")
            cos = plain.args[1] if plain.args[0] is x else plain.args[0]  # type: ignore[union-attr]
            if not isinstance(cos, fx.Node) or not isinstance(sin, fx.Node):
                raise NoRopeError(f"'{plain}' or '{turned}' multiplies by a number")
            return Rotation(x, cos, sin, int(x.meta["val"].shape[-1]), interleaved)
    return None


def _rotated(node: Any) -> tuple[fx.Node, bool] | None:
    """(x, interleaved) when `node` is cat(-x2, x1), or the pairs (-x[2i+1], x[2i])."""
    pair = _pair(node)
    if pair is None or not _is(pair[0], aten.neg.default):
        return None
    second, first = _part(pair[0].args[0]), _part(pair[1])
    interleaved = pair[2]
    if first is None or second is None or first.x is not second.x:
        return None
    if not _are_halves(first, second, interleaved):
        raise NoRopeError(f"'{node.name}' joins parts that are no halves")
    return first.x, interleaved


def _match_halves(node: fx.Node) -> Rotation | None:
    """cat(x1 * cos - x2 * sin, x2 * cos + x1 * sin), or interleaved"""
    pair = _pair(node)
    if pair is None or not _is(pair[0], aten.sub.Tensor) or not _is(pair[1], aten.add.Tensor):
        return None
    minus, plus, interleaved = pair
    terms = [*minus.args[:2], *plus.args[:2]]
    if minus.kwargs or plus.kwargs or not all(_is(term, aten.mul.Tensor) for term in terms):
        return None
    for left, cos in (terms[0].args, terms[0].args[::-1]):
        for right, sin in (terms[1].args, terms[1].args[::-1]):
            first, second = _part(left), _part(right)
            if first is None or second is None or first.x is not second.x:
                continue
            if not _are_halves(first, second, interleaved):
                continue
            sums = [set(term.args) for term in terms[2:]]
            if sums not in ([{right, cos}, {left, sin}], [{left, sin}, {right, cos}]):
                raise NoRopeError(f"'{plus.name}' is not the other half of '{minus.name}'")
            size = int(first.x.meta["val"].shape[-1])
            return Rotation(first.x, cos, sin, size, interleaved, halves=True)
    return None


def _are_halves(first: _Part, second: _Part, interleaved: bool) -> bool:
    size = int(first.x.meta["val"].shape[-1])
    one, two = (first.start, first.stop, first.step), (second.start, second.stop, second.step)
    if size % 2:
        return False
    if interleaved:
        return one[0] == 0 and two[0] == 1 and one[2] == two[2] == 2 and one[1] >= size - 1
    return one == (0, size // 2, 1) and two == (size // 2, size, 1)


def _pair(node: Any) -> tuple[Any, Any, bool] | None:
    """The two values whose channels `node` has one after the other, or (True) by turns."""
    parts = _joined(node)
    if parts is not None:
        return (*parts, False) if len(parts) == 2 else None
    if not _is(node, aten.reshape.default):
        return None
    inner, shape = node.args[0], [size_of(size) for size in node.meta["val"].shape]
    stacked = [size_of(size) for size in inner.meta["val"].shape]
    if stacked[:-2] != shape[:-1] or stacked[-1] != 2 or stacked[-2] * 2 != shape[-1]:
        return None
    if _is(inner, aten.stack.default):
        dim: Any = inner.args[1] if len(inner.args) > 1 else 0
        values: Any = inner.args[0]
    elif _is(inner, aten.cat.default):
        dim = inner.args[1] if len(inner.args) > 1 else 0
        values = [_before_unsqueeze(value) for value in inner.args[0]]  # type: ignore[union-attr]
    else:
        return None
    if dim not in (-1, len(stacked) - 1) or len(values) != 2 or None in values:
        return None
    return values[0], values[1], True


def _before_unsqueeze(node: Any) -> fx.Node | None:
    """y when `node` is y with a last axis of 1 added."""
    if not (_is(node, aten.unsqueeze.default) or _is(node, aten.reshape.default)):
        return None
    source: Any = node.args[0]
    shapes = [[size_of(size) for size in n.meta["val"].shape] for n in (source, node)]
    return source if [*shapes[0], 1] == shapes[1] else None


def _joined(node: Any) -> list[Any] | None:
    """The parts of a cat along the last axis."""
    if not _is(node, aten.cat.default):
        return None
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    last = node.meta["val"].dim() - 1
    return list(node.args[0]) if dim in (-1, last) else None


def _part(node: Any) -> _Part | None:
    """`node` as a slice of the last axis."""
    if not _is(node, aten.slice.Tensor):
        return None
    source: Any = node.args[0]
    last = source.meta["val"].dim() - 1
    given: list[Any] = list(node.args[1:5])
    given += [0, 0, None, 1][len(given) :]
    dim, start, stop, step = given
    size = source.meta["val"].shape[-1]
    if dim not in (-1, last) or not isinstance(size, int):
        return None
    bounds = [0 if start is None else start, size if stop is None else stop]
    if not all(isinstance(bound, int) for bound in (*bounds, step)):
        return None
    begin, end = (bound + size if bound < 0 else min(bound, size) for bound in bounds)
    return _Part(source, begin, end, step)


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target
