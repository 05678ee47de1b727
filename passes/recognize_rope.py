"""Rotary position embeddings, written out in a dozen ops, become gw.rope over [T, H, D]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir import Program
from graphwright.ir.layout import size_of
from graphwright.passes.base import Pass, Stage
from graphwright.passes.layout_chains import Atom, Chain, arrange, collapse_chains, trace
from graphwright.passes.rope_pattern import NoRopeError, Rotation, looks_like_rope, match_rope

__all__ = ["RecognizeRope"]

aten = torch.ops.aten


@dataclass(frozen=True)
class RecognizeRope(Pass):
    """x * cos + rotate_half(x) * sin, in any layout of x  →  gw.rope(x, cos, sin).

    Also the form on halves (cat of x1 * cos - x2 * sin and x2 * cos + x1 * sin), rotation of the
    first channels only (cat of a rotated slice and the rest), and the interleaved order of pairs.
    Leaves: tables that differ between heads; anything else, which stays as it is and works.
    """

    stage: ClassVar[Stage] = Stage.ATTENTION

    def run(self, program: Program) -> int:
        rewrites = 0
        tables: dict[Any, fx.Node] = {}
        for node in list(program.graph.nodes):
            if not looks_like_rope(node) or not node.users:
                continue
            try:
                found = match_rope(node)
                chain, axes = _layout(program, found)
            except NoRopeError as reason:
                self.miss(f"'{node.name}' is no rotary embedding: {reason}.")
                continue
            if not self.allowed():
                break
            _rewrite(program, node, found, chain, axes, tables)
            rewrites += 1
        if rewrites:
            program.drop_dead()
            collapse_chains(program)
        return rewrites


def _layout(program: Program, found: Rotation) -> tuple[Chain, list[list[Atom]]]:
    """What x is made of, and its axes as tokens, heads, repeats of those heads, channels."""
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    for repeats in (True, False):
        chain = trace(found.x, repeats)
        rows = [i for i, axis in enumerate(chain.axes) if [atom.size for atom in axis] == [tokens]]
        if len(rows) != 1 or rows[0] == len(chain.axes) - 1:
            raise NoRopeError(f"'{found.x.name}' has no token axis in front of its channels")
        leading = [axis for i, axis in enumerate(chain.axes[:-1]) if i != rows[0]]
        heads = [atom for axis in leading for atom in axis]
        kept = [atom for atom in heads if atom not in chain.repeated]
        fixed = {*chain.axes[rows[0]], *chain.axes[-1]}
        if heads[: len(kept)] == kept and not chain.repeated & fixed:
            _check_table(found.cos, found.x, rows[0], found)
            _check_table(found.sin, found.x, rows[0], found)
            return chain, [chain.axes[rows[0]], kept, heads[len(kept) :], chain.axes[-1]]
    raise NoRopeError(f"'{found.x.name}' does not come apart into tokens, heads and channels")


def _check_table(table: fx.Node, x: fx.Node, row: int, found: Rotation) -> None:
    """A table must hold one row of angles a token, the same for all heads."""
    shape = [size_of(size) for size in table.meta["val"].shape]
    rank = x.meta["val"].dim()
    wanted = [1] * rank
    wanted[row] = size_of(x.meta["val"].shape[row])
    wanted[-1] = found.size // 2 if found.halves else found.size
    if len(shape) > rank or shape != wanted[rank - len(shape) :] or len(shape) < rank - row:
        raise NoRopeError(
            f"the table '{table.name}' {tuple(table.meta['val'].shape)} does not give each token "
            f"{wanted[-1]} values"
        )
    if table.meta["val"].dtype != torch.float32:
        raise NoRopeError(f"the table '{table.name}' is {table.meta['val'].dtype}")


def _rewrite(
    program: Program,
    node: fx.Node,
    found: Rotation,
    chain: Chain,
    axes: list[list[Atom]],
    tables: dict[Any, fx.Node],
) -> None:
    rows, heads, repeats, channels = axes
    x = arrange(program, node, chain.base, chain.base_axes, [rows, heads, channels])
    cos, sin = (_table(program, node, table, found, tables) for table in (found.cos, found.sin))
    result = program.call(
        node, torch.ops.gw.rope.default, x, cos, sin, interleaved=found.interleaved
    )
    result.meta["stack_trace"] = node.meta.get("stack_trace")
    have = [rows, heads, channels]
    if repeats:
        sizes = [_size(axis) for axis in (heads, repeats, channels)]
        result = program.call(node, aten.reshape.default, result, [-1, sizes[0], 1, sizes[2]])
        result = program.call(node, aten.expand.default, result, [-1, *sizes])
        have = [rows, heads, repeats, channels]
    program.replace(node, arrange(program, node, result, have, chain.axes))


def _size(axis: list[Atom]) -> int:
    size = 1
    for atom in axis:
        size *= atom.size
    return size


def _table(
    program: Program,
    before: fx.Node,
    node: fx.Node,
    found: Rotation,
    tables: dict[Any, fx.Node],
) -> fx.Node:
    """`node` as [T, R]; tables of half the size are repeated for both channels of a pair."""
    chain = trace(node, repeats=False)
    flat = [[atom for axis in chain.axes[:-1] for atom in axis], chain.axes[-1]]
    key = (chain.base, tuple(size_of(s) for s in node.meta["val"].shape[-1:]), found.halves,
           found.interleaved)  # fmt: skip
    if key not in tables:
        table = arrange(program, before, chain.base, chain.base_axes, flat)
        if found.halves and found.interleaved:
            table = program.call(before, aten.repeat_interleave.self_int, table, 2, -1)
        elif found.halves:
            table = program.call(before, aten.cat.default, [table, table], -1)
        tables[key] = table
    return tables[key]
