"""Chains of ops that only move elements: where a value comes from, and the shortest way there.

Each axis of a value is a list of *atoms*, outermost first; an atom is an axis that no op of the
chain takes apart. Walking a chain backwards moves, splits and (for `expand`) drops atoms, so that
at its start their order says which permutation and reshape the whole chain amounts to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.ir import Program
from graphwright.ir.layout import size_of

__all__ = ["Atom", "Chain", "arrange", "collapse_chains", "follow", "is_layout_op", "trace"]

aten = torch.ops.aten
_SAME = {aten.clone.default, aten.alias.default, aten.contiguous.default, aten.detach.default}
_RESHAPES = {
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int,
}  # fmt: skip
_ONES = {aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default}
_MOVES = {aten.permute.default, aten.transpose.int, aten.t.default}
_REPEATS = {aten.expand.default, aten.repeat_interleave.self_int}


@dataclass(frozen=True, eq=False)
class Atom:
    """One indivisible axis: `size` is an int, or the expression of a symbolic size."""

    size: Any


@dataclass
class Chain:
    """The `axes` of a value made of `base`, and those of `base`: without the `repeated` atoms."""

    base: fx.Node
    base_axes: list[list[Atom]]
    axes: list[list[Atom]]
    repeated: set[Atom]
    length: int


def is_layout_op(node: Any) -> bool:
    """Does `node` only move elements of its first argument, by an op that `trace` walks through?"""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    if node.target is aten._to_copy.default:
        source: Any = node.args[0]
        return bool(source.meta["val"].dtype == node.meta["val"].dtype)
    if node.target is aten.select.int:
        whole: Any = node.args[0]
        return bool(size_of(whole.meta["val"].shape[node.args[1]]) == 1)  # type: ignore[index]
    return node.target in _SAME | _RESHAPES | _ONES | _MOVES | _REPEATS


def trace(node: fx.Node, repeats: bool = True, end: fx.Node | None = None) -> Chain:
    """Walks back from `node` to the first value that is not a mere rearrangement, at most to `end`.

    With `repeats` False it stops in front of ops that copy elements (expand, repeat_interleave).
    """
    axes = [[] if s == 1 else [Atom(s)] for s in map(size_of, node.meta["val"].shape)]
    return follow(Chain(node, [list(axis) for axis in axes], axes, set(), 0), repeats, end)


def follow(chain: Chain, repeats: bool = True, end: fx.Node | None = None) -> Chain:
    """`trace` from the base of `chain` on; changes and returns it."""
    while (
        chain.base is not end and is_layout_op(chain.base) and (repeats or not _repeats(chain.base))
    ):
        step = _step_back(chain)
        if step is None:
            break
        chain.base_axes = step
        chain.base = chain.base.args[0]  # type: ignore[assignment]
        chain.length += 1
    return chain


def _repeats(node: fx.Node) -> bool:
    source: Any = node.args[0]
    return node.target in _REPEATS and source.meta["val"].numel() != node.meta["val"].numel()


def _step_back(chain: Chain) -> list[list[Atom]] | None:
    """The axes of the op's input, given those of its output; None when they cannot be told."""
    node, axes = chain.base, chain.base_axes
    source: Any = node.args[0]
    sizes = [size_of(s) for s in source.meta["val"].shape]
    if node.target in _MOVES:
        result: list[list[Atom]] = [[] for _ in axes]
        for axis, dim in zip(axes, _permutation(node, len(axes)), strict=True):
            result[dim] = axis
        return result
    if node.target is aten.expand.default:
        added = len(axes) - len(sizes)
        for i, axis in enumerate(axes):
            if i < added or sizes[i - added] == 1:
                chain.repeated.update(axis)
        return [[] if size == 1 else axes[i + added] for i, size in enumerate(sizes)]
    if node.target is aten.repeat_interleave.self_int:
        return _step_back_interleave(chain, sizes)
    return _regroup(chain, [atom for axis in axes for atom in axis], sizes)


def _step_back_interleave(chain: Chain, sizes: list[Any]) -> list[list[Atom]] | None:
    node = chain.base
    count: Any = node.args[1]
    dim: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    if not isinstance(count, int) or not isinstance(dim, int):
        return None
    dim %= len(sizes)
    parts = _regroup(chain, chain.base_axes[dim], [sizes[dim], count])
    if parts is None:
        return None
    chain.repeated.update(parts[1])
    return [parts[0] if i == dim else axis for i, axis in enumerate(chain.base_axes)]


def _permutation(node: fx.Node, rank: int) -> list[int]:
    if node.target is aten.permute.default:
        return [int(dim) % rank for dim in node.args[1]]  # type: ignore[union-attr, arg-type]
    dims = list(range(rank))
    first, second = node.args[1:3] if node.target is aten.transpose.int else (0, rank - 1)
    first, second = int(first) % rank, int(second) % rank  # type: ignore[arg-type]
    dims[first], dims[second] = dims[second], dims[first]
    return dims


def _regroup(chain: Chain, flat: list[Atom], sizes: Sequence[Any]) -> list[list[Atom]] | None:
    """`flat`, cut into axes of `sizes`; splits atoms of known size where a border needs it."""
    rest, result = list(flat), []
    for size in sizes:
        axis: list[Atom] = []
        while size != 1:
            if not rest:
                return None
            atom = rest[0]
            if atom.size == size:
                axis.append(rest.pop(0))
                size = 1
            elif isinstance(size, int) and _divides(size, atom.size):
                outer, inner = Atom(size), Atom(atom.size // size)
                _split(chain, atom, [outer, inner])
                rest[:1] = [outer, inner]
            elif not isinstance(atom.size, int):
                quotient = size / atom.size
                if not quotient.is_Integer:
                    return None
                axis.append(rest.pop(0))
                size = int(quotient)
            elif isinstance(size, int) and size % atom.size == 0:
                axis.append(rest.pop(0))
                size //= atom.size
            elif not isinstance(size, int) and (size / atom.size).is_polynomial():
                axis.append(rest.pop(0))
                size = size / atom.size
            else:
                return None
        result.append(axis)
    return None if rest else result


def _divides(size: int, whole: Any) -> bool:
    """Is `whole`, a number or the expression of a symbolic size, a multiple of `size`?"""
    if isinstance(whole, int):
        return whole % size == 0
    return bool((whole / size).as_numer_denom()[1] == 1)


def _split(chain: Chain, atom: Atom, parts: list[Atom]) -> None:
    for axes in (chain.axes, chain.base_axes):
        for axis in axes:
            if atom in axis:
                at = axis.index(atom)
                axis[at : at + 1] = parts
    if atom in chain.repeated:
        chain.repeated.remove(atom)
        chain.repeated.update(parts)


def arrange(
    program: Program,
    before: fx.Node,
    base: fx.Node,
    base_axes: list[list[Atom]],
    wanted: list[list[Atom]],
) -> fx.Node:
    """A node with axes `wanted`, made of `base` by at most one permutation between two reshapes."""
    have = [atom for axis in base_axes for atom in axis]
    want = [atom for axis in wanted for atom in axis]
    if have != want:
        pieces = _pieces(have, want)
        order = sorted(range(len(pieces)), key=lambda i: want.index(pieces[i][0]))
        base = _reshape(program, before, base, pieces)
        base = program.call(before, aten.permute.default, base, order)
    return _reshape(program, before, base, wanted)


def _pieces(have: list[Atom], want: list[Atom]) -> list[list[Atom]]:
    """Runs of `have` that stay together in `want`."""
    pieces: list[list[Atom]] = []
    for atom in have:
        last = pieces[-1][-1] if pieces else None
        if last is not None and want.index(atom) == want.index(last) + 1:
            pieces[-1].append(atom)
        else:
            pieces.append([atom])
    return pieces


def _reshape(program: Program, before: fx.Node, node: fx.Node, axes: list[list[Atom]]) -> fx.Node:
    sizes = []
    for axis in axes:
        size: Any = 1
        for atom in axis:
            size = size * atom.size
        sizes.append(size)
    if sizes == [size_of(size) for size in node.meta["val"].shape]:
        return node
    numbers = [size if isinstance(size, int) else -1 for size in sizes]
    assert numbers.count(-1) <= 1, f"more than one symbolic size in {sizes}"
    return program.call(before, aten.reshape.default, node, numbers)


def collapse_chains(program: Program) -> int:
    """Replaces every chain of layout ops that a shorter one equals; returns how many.

    Leaves: chains that repeat elements, and values with several symbolic axes.
    """
    changed = 0
    for node in list(program.graph.nodes):
        if not is_layout_op(node) or all(is_layout_op(user) for user in node.users):
            continue
        chain = trace(node, repeats=False)
        if chain.length < 2 or _symbolic(chain.axes) > 1:
            continue
        if _length(chain) < chain.length:
            program.replace(node, arrange(program, node, chain.base, chain.base_axes, chain.axes))
            changed += 1
    return changed


def _symbolic(axes: list[list[Atom]]) -> int:
    return sum(not isinstance(atom.size, int) for axis in axes for atom in axis)


def _length(chain: Chain) -> int:
    """How many ops `arrange` would emit."""
    have = [atom for axis in chain.base_axes for atom in axis]
    want = [atom for axis in chain.axes for atom in axis]
    shapes = [[[a.size for a in axis] for axis in axes] for axes in (chain.base_axes, chain.axes)]
    if have == want:
        return int(shapes[0] != shapes[1])
    pieces = _pieces(have, want)
    order = sorted(range(len(pieces)), key=lambda i: want.index(pieces[i][0]))
    moved = [pieces[i] for i in order]
    return 1 + int(pieces != chain.base_axes) + int(moved != chain.axes)
