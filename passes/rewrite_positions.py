"""Positions that the model counts itself become the positions of the step's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.program import Level, Program
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.bound_context import bound_context
from graphwright.passes.canonical_layout import reshape_like
from graphwright.passes.content_free import content_free_nodes, evaluate, is_shape_only
from graphwright.passes.fold_constants import FoldConstants
from graphwright.passes.token_axis import refuse_unknown_ops

__all__ = ["RewritePositions"]

aten = torch.ops.aten
_LENGTHS = (5, 9)  # lengths at which a value must be arange(T) + c, before longer ones are tried
_LONGEST = 2**15  # up to which a counter must count
_LONGEST_PAIRS = 2**11  # and up to which it may come from a value for each pair of tokens
_COUNTED = (torch.int64, torch.int32, torch.float32)
_GATHERS = (aten.index.Tensor, aten.index_select.default, aten.gather.default)


@dataclass(frozen=True)
class RewritePositions(Pass):
    """arange(T) + c → positions + c;  table[c : T + c] → embedding(table, positions + c).

    A value counts tokens when it is arange(T) + c at short lengths, at the longest, and past every
    number in its graph, however it is computed. Leaves:
    what only says which row of the step is meant (an index into a value that has one row a token),
    and what only feeds a mask, a value with two token axes: masks are recognised by evaluation.
    """

    stage: ClassVar = Stage.NORMALIZE
    exactness: ClassVar = Exactness.EXACT
    after: ClassVar = (FoldConstants,)
    reaches: ClassVar = Level.NORMALIZED
    optional: ClassVar = False

    def run(self, program: Program) -> int:
        """Counts rewritten counters and table slices."""
        count = 0
        while (found := _first_counter(program)) is not None:
            node, counter = found
            program.replace(node, _from_positions(program, node, counter))
            program.drop_dead()
            count += 1
        for node in _candidates(program):
            axis = _token_axis(node.meta["val"], program)
            value = evaluate(program, [node], _LENGTHS[0])[node]
            assert axis is not None
            if not torch.equal(value, value.narrow(axis, 0, 1).expand_as(value)):
                self.miss(
                    f"'{node.name}' differs by the place of a token in the step, and is not its "
                    f"position plus a constant."
                )
        refuse_unknown_ops(program)
        shortened = bound_context(program)
        if shortened is not None:
            self.miss(shortened)
        return count


@dataclass(frozen=True)
class _Counter:
    """The value is positions + offset; with a table, table[positions + offset] along `axis`."""

    axis: int
    offset: int
    table: fx.Node | None = None


def _first_counter(program: Program) -> tuple[fx.Node, _Counter] | None:
    """The first node, in graph order, that counts tokens: what comes from it follows by itself."""
    for node in _candidates(program):
        axis = _token_axis(node.meta["val"], program)
        assert axis is not None
        counter = _table_slice(program, node) or _count(program, node, axis)
        if counter is not None:
            return node, counter
    return None


def _candidates(program: Program) -> list[fx.Node]:
    """Nodes that token values use and that are the same in every step of the same length."""
    free, fixed = content_free_nodes(program), _length_only(program)
    used = _used_by_tokens(program, free)
    return [n for n in used if n in fixed and _token_axis(n.meta["val"], program) is not None]


def _count(program: Program, node: fx.Node, axis: int) -> _Counter | None:
    value = node.meta["val"]
    if value.dtype not in _COUNTED or any(s != 1 for i, s in enumerate(value.shape) if i != axis):
        return None
    first = _offset(program, node, _LENGTHS[0])
    if first is None or any(_offset(program, node, n) != first for n in _LENGTHS[1:]):
        return None
    lengths = _far_lengths(program, node)
    if lengths is None or any(_offset(program, node, n) != first for n in lengths):
        return None
    return _Counter(axis, first)


def _offset(program: Program, node: fx.Node, length: int) -> int | None:
    """c when the value is arange(length) + c, else None."""
    result = evaluate(program, [node], length)[node].reshape(-1)
    offset = result[0].item()
    if offset != int(offset) or len(result) != length:
        return None
    counted = torch.arange(length).add(int(offset)).to(result.dtype)
    return int(offset) if torch.equal(result, counted) else None


def _far_lengths(program: Program, node: fx.Node) -> list[int] | None:
    """Lengths at which a value that only begins like a counter would show it: the longest, and
    those past each number in its graph. None when that is too much to look at."""
    seen: set[fx.Node] = {node}
    stack, pairs, numbers = [node], False, set()
    while stack:
        here = stack.pop()
        value = here.meta.get("val")
        shape = value.shape if isinstance(value, torch.Tensor) else ()
        pairs |= sum(not isinstance(size_of(size), int) for size in shape) > 1
        fx.node.map_aggregate(
            (here.args, here.kwargs), lambda x: numbers.add(x) if isinstance(x, int) else None
        )
        sources = [] if is_shape_only(here) else [n for n in here.all_input_nodes if n not in seen]
        seen.update(sources)
        stack += sources
    longest = min(program.info.max_context or _LONGEST, _LONGEST)
    if pairs and longest > _LONGEST_PAIRS:
        return None
    return sorted({longest} | {n + 1 for n in map(abs, numbers) if n < longest})


def _table_slice(program: Program, node: fx.Node) -> _Counter | None:
    """table[c : T + c] of a table that does not depend on the number of tokens."""
    if node.target is not aten.slice.Tensor or len(node.args) != 4:
        return None
    table, axis, start, end = node.args
    assert isinstance(table, fx.Node) and isinstance(axis, int)
    if any(not isinstance(size_of(size), int) for size in table.meta["val"].shape):
        return None
    if not isinstance(start, int) or not isinstance(end, fx.Node):
        return None
    if any(evaluate(program, [end], length)[end] - start != length for length in _LENGTHS):
        return None
    return _Counter(axis, start, table)


def _from_positions(program: Program, node: fx.Node, counter: _Counter) -> fx.Node:
    """The value of `node`, computed from the positions input."""
    index = program.placeholder("positions")
    if counter.offset:
        index = program.call(node, aten.add.Tensor, index, counter.offset)
    table = counter.table
    if table is None:
        if node.meta["val"].dtype != torch.int64:
            cast = aten._to_copy.default
            index = program.call(node, cast, index, dtype=node.meta["val"].dtype)
        if node.meta["val"].dim() == 1:
            return index
        return reshape_like(program, node, index, node)
    if table.meta["val"].dim() == 2 and counter.axis == 0 and table.op == "get_attr":
        return program.call(node, aten.embedding.default, table, index)
    return program.call(node, aten.index_select.default, table, counter.axis, index)


# ---- where to look


def _tokens(program: Program) -> Any:
    return size_of(program.placeholder("tokens").meta["val"].shape[0])


def _token_axis(value: Any, program: Program) -> int | None:
    """The only axis with one entry a token; None when there is none, or several."""
    if not isinstance(value, torch.Tensor):
        return None
    sizes = [size_of(size) for size in value.shape]
    if sum(not isinstance(size, int) for size in sizes) != 1:
        return None
    return sizes.index(_tokens(program)) if _tokens(program) in sizes else None


def _length_only(program: Program) -> set[fx.Node]:
    """Content-free nodes that do not follow from the positions either: the same for every step of
    the same length."""
    free = content_free_nodes(program)
    fixed: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node not in free or node.op == "placeholder":
            continue
        sources = [node.args[0]] if is_shape_only(node) else []
        if all(source in fixed for source in node.all_input_nodes if source not in sources):
            fixed.add(node)
    return fixed


def _used_by_tokens(program: Program, free: set[fx.Node]) -> list[fx.Node]:
    """Content-free nodes whose values meet token values, masks aside, and all they come from."""
    reached: set[fx.Node] = set()
    stack = [
        source
        for node in program.graph.nodes
        if node not in free and not is_shape_only(node)
        for source in _operands(node)
        if source in free
    ]
    while stack:
        node = stack.pop()
        symbolic = 0
        if isinstance(node.meta.get("val"), torch.Tensor):
            symbolic = sum(not isinstance(size_of(s), int) for s in node.meta["val"].shape)
        if node in reached or symbolic > 1 or is_shape_only(node):
            continue
        reached.add(node)
        stack.extend(source for source in _operands(node) if source in free)
    return [node for node in program.graph.nodes if node in reached]


def _operands(node: fx.Node) -> list[fx.Node]:
    """The inputs of `node`, without what only says which rows of the step it takes."""
    if node.target in _GATHERS:
        source: Any = node.args[0]
        if any(not isinstance(size_of(s), int) for s in source.meta["val"].shape):
            return [source]
    return node.all_input_nodes
