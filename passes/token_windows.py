"""Values that are a piece of the token axis, padded with zeros or cut: shifts and what they feed.

Every such value follows one rule: its element i along the axis is token i - left of the base, and
zero where the base has no such token. Padding and cutting only change `left` and the length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from graphwright.ir import Program
from graphwright.ir.layout import size_of
from graphwright.ir.levels import POINTWISE
from graphwright.ir.printer import format_value

__all__ = ["Cut", "NoWindowError", "Window", "find_cut", "trace_window"]

aten = torch.ops.aten
_MOVES = {aten.permute.default, aten.transpose.int}
_ZEROS = {
    aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.full.default,
    aten.new_full.default, aten.full_like.default,
}  # fmt: skip
_EXAMINED_BYTES = 2**20  # a constant larger than this is not looked into for zeros
_FILL = {aten.full.default: 1, aten.new_full.default: 2, aten.full_like.default: 1}


class NoWindowError(Exception):
    """Why a value is no window of the token axis: a sentence without its full stop."""


@dataclass(frozen=True)
class Window:
    """`length` elements along an axis of size `tokens`; `moves` permute base into this layout."""

    base: fx.Node
    left: int
    length: Any
    tokens: Any
    moves: tuple[fx.Node, ...] = ()

    def padded(self, before: int, behind: int) -> Window:
        """With so many zeros put in front and behind; negative numbers cut. Raises."""
        if (before > 0 and self.left < 0) or (behind > 0 and not self._covers_end()):
            raise NoWindowError(f"tokens of '{self.base.name}' are cut off and replaced by zeros")
        length = self.length + before + behind
        return replace(self, left=self.left + before, length=length)

    def _covers_end(self) -> bool:
        """Are the last tokens of the base inside?"""
        more: Any = self.length - self.left - self.tokens
        return (isinstance(more, int) or more.is_Integer) and int(more) >= 0

    def build(self, program: Program, before: fx.Node) -> fx.Node:
        """The whole base in this window's layout, in front of `before`."""
        node = self.base
        for move in self.moves:
            node = program.call(before, move.target, node, *move.args[1:])  # type: ignore[arg-type]
        return node


def trace_window(program: Program, node: Any, axis: int) -> Window:
    """What `node` is along `axis`. Raises NoWindowError with the reason when it is no window."""
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    if isinstance(node, fx.Node) and node.op == "call_function":
        if node.target in _MOVES:
            moved = trace_window(program, node.args[0], _axis_before(node, axis))
            return replace(moved, moves=(*moved.moves, node))
        pads = _pads(program, node, axis)
        if pads is not None:
            source, before, behind = pads
            return trace_window(program, source, axis).padded(before, behind)
        if node.target is aten.slice.Tensor and _dim(node) == axis:
            window = trace_window(program, node.args[0], axis)
            return _sliced(node, window, axis)
    size = node.meta["val"].shape[axis]
    if size_of(size) != tokens:
        text = format_value(size, program.dims)
        raise NoWindowError(f"'{node.name}' has {text} elements where the tokens should be")
    return Window(node, 0, tokens, tokens)


def _sliced(node: fx.Node, window: Window, axis: int) -> Window:
    start, step = _start(node), node.args[4] if len(node.args) > 4 else 1
    if start is None or step != 1:
        raise NoWindowError(f"'{node.name}' takes elements from {node.args[2]} by {step}")
    return replace(window, left=window.left - start, length=size_of(node.meta["val"].shape[axis]))


def _start(node: fx.Node) -> int | None:
    """Where a slice begins, counted from the front; None when that cannot be told."""
    start = node.args[2] if len(node.args) > 2 else 0
    start = 0 if start is None else start
    return start if isinstance(start, int) and start >= 0 else None


def _dim(node: fx.Node, position: int = 1) -> int:
    dim: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return int(dim) % int(node.meta["val"].dim())


def _pads(program: Program, node: fx.Node, axis: int) -> tuple[fx.Node, int, int] | None:
    """(source, zeros in front, zeros behind) when `node` only pads `axis` with zeros."""
    if node.target is aten.constant_pad_nd.default:
        source, pads = node.args[:2]
        fill = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0)
        assert isinstance(source, fx.Node) and isinstance(pads, (list, tuple))
        at = 2 * (node.meta["val"].dim() - 1 - axis)
        given = [*pads, *[0] * node.meta["val"].dim() * 2]
        here = given[at : at + 2]
        if not all(isinstance(pad, int) for pad in given) or any(given[:at] + given[at + 2 :]):
            return None
        return (source, here[0], here[1]) if fill in (None, 0) else None  # type: ignore[return-value]
    if node.target is aten.cat.default and _dim(node) == axis:
        parts: Any = node.args[0]
        kept = [i for i, part in enumerate(parts) if not _is_zero(program, part, axis)]
        if len(kept) == 1:
            sizes = [part.meta["val"].shape[axis] for part in parts]
            before = sum(int(size) for size in sizes[: kept[0]])
            return parts[kept[0]], before, sum(int(size) for size in sizes[kept[0] + 1 :])
    return None


def _is_zero(program: Program, node: fx.Node, axis: int) -> bool:
    """Is `node` all zeros, and of a known size along `axis`?"""
    value: torch.Tensor = node.meta["val"]
    if not isinstance(value.shape[axis], int):
        return False
    weight = program.weight_of(node)
    if weight is not None:
        return weight.nbytes <= _EXAMINED_BYTES and int(weight.load().count_nonzero()) == 0
    if node.target is aten.expand.default:
        source: Any = node.args[0]
        return source.meta["val"].dim() == value.dim() and _is_zero(program, source, axis)
    if node.target is aten.linear.default and node.args[2:] in ((), (None,)) and not node.kwargs:
        return axis != value.dim() - 1 and _is_zero(program, node.args[0], axis)  # type: ignore[arg-type]
    if node.target not in _ZEROS:
        return False
    fill: Any = node.args[_FILL[node.target]] if node.target in _FILL else 0
    return bool(fill == 0)


def _axis_before(node: fx.Node, axis: int) -> int:
    """The axis of a permutation's input that is `axis` of its output."""
    rank = int(node.meta["val"].dim())
    given: Any = node.args[1] if node.target is aten.permute.default else list(range(rank))
    dims = [int(dim) % rank for dim in given]
    if node.target is aten.transpose.int:
        one, two = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
        dims[one], dims[two] = dims[two], dims[one]
    return dims[axis]


def _follow_axis(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Where `axis` of `source` is in `node`, which acts on each of its elements; None: unknown."""
    value: Any = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or node.op != "call_function":
        return None
    if node.target in _MOVES:
        return next(i for i in range(value.dim()) if _axis_before(node, i) == axis)
    if node.target is aten.slice.Tensor and _dim(node) != axis:
        return axis
    if str(node.target).removeprefix("aten.") not in POINTWISE:
        return None
    return int(axis - source.meta["val"].dim() + value.dim())


@dataclass(frozen=True)
class Cut:
    """Where a value longer than the tokens is cut: `slices`, among the `nodes` behind it in order.

    left: as in Window, behind the cut.
    """

    left: int
    slices: frozenset[fx.Node]
    nodes: tuple[fx.Node, ...]


def find_cut(program: Program, node: fx.Node, axis: int, left: int) -> Cut:
    """How the users of `node`, whose elements are `left` behind the tokens, cut it to the tokens.

    Between it and the last slice there may be permutations and what acts elementwise. Raises
    NoWindowError with the reason when something sees more, or other, elements than the tokens.
    """
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    if size_of(node.meta["val"].shape[axis]) == tokens:
        return Cut(left, frozenset(), ())
    places: dict[fx.Node, tuple[int, int]] = {node: (axis, left)}  # axis and left of each
    ends: dict[fx.Node, int] = {}
    slices: set[fx.Node] = set()
    queue = [node]
    while queue:
        here = queue.pop()
        axis, left = places[here]
        for user in here.users:
            if user in places or user in ends:
                continue
            if user.target is aten.slice.Tensor and _dim(user) == axis:
                window = _sliced(user, Window(here, left, 0, tokens), axis)
                slices.add(user)
                if window.length == tokens:
                    ends[user] = window.left
                    continue
                place, behind = axis, window.left
            else:
                place, behind = _place_in_user(program, user, here, axis), left
            places[user] = (place, behind)
            queue.append(user)
    for each in places:
        if str(each.target).removeprefix("aten.") in POINTWISE:
            _check_operands(each, places)
    if len(set(ends.values())) != 1:
        raise NoWindowError(f"'{node.name}' is cut in different places")
    nodes = sorted({*places, *ends} - {node})
    return Cut(set(ends.values()).pop(), frozenset(slices), tuple(nodes))


def _place_in_user(program: Program, user: fx.Node, source: fx.Node, axis: int) -> int:
    place = _follow_axis(user, source, axis)
    if place is None:
        size = format_value(source.meta["val"].shape[axis], program.dims)
        raise NoWindowError(
            f"'{user.name}' uses all {size} elements of '{source.name}', not those of the T tokens"
        )
    return place


def _check_operands(node: fx.Node, places: dict[fx.Node, tuple[int, int]]) -> None:
    """What joins a value in `node` before the cut is cut alike, or is the same for all elements."""
    axis, left = places[node]
    from_right = axis - node.meta["val"].dim()
    for source in node.all_input_nodes:
        given = source.meta["val"]
        if source in places:
            place, other = places[source]
            if other != left or place - given.dim() != from_right:
                raise NoWindowError(f"'{node.name}' joins pieces that are cut differently")
            continue
        apart = not isinstance(given, torch.Tensor) or given.dim() < -from_right
        if not apart and size_of(given.shape[from_right]) != 1:
            raise NoWindowError(f"'{source.name}' joins it in '{node.name}' before it is cut")
