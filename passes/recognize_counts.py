"""Running counts of tokens of some kind become recurrences, whose state is the count so far."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.program import Program
from graphwright.ir.scan_step import ScanState, ScanStep
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.content_free import content_free_nodes
from graphwright.passes.fold_constants import FoldConstants
from graphwright.passes.index_range import index_range
from graphwright.passes.token_rows import from_rows, to_rows

__all__ = ["RecognizeCounts", "counts_of"]

aten, gw = torch.ops.aten, torch.ops.gw
_EXACT = 1 << 24  # float32, which states are of, holds all whole numbers up to here
_RESULTS = (torch.int64, torch.int32, torch.float32)


@dataclass(frozen=True)
class RecognizeCounts(Pass):
    """cumsum(x) along the tokens, x 0 or 1 by the content of a token  →  gw.scan_along_tokens.

    Positions that leave padding out are such counts. The count is exact, as no text has more tokens
    than float32 counts: a longer context is shortened to that. Leaves: counts that follow from the
    number of tokens alone, which are positions; sums of anything else than 0 and 1.
    """

    stage: ClassVar = Stage.NORMALIZE
    exactness: ClassVar = Exactness.EXACT
    after: ClassVar = (FoldConstants,)
    optional: ClassVar = False  # nothing else may keep the running sum

    def run(self, program: Program) -> int:
        count, free = 0, content_free_nodes(program)
        for node in list(program.graph.nodes):
            if node.target is not aten.cumsum.default or node in free:
                continue
            reason = _reason(program, node)
            if reason is not None:
                self.miss(f"'{node.name}' is no count of tokens: {reason}.")
                continue
            _rewrite(program, node)
            count += 1
        if count:
            longest = min(program.info.max_context or _EXACT, _EXACT)
            program.info = replace(program.info, max_context=longest)
        return count


def counts_of(program: Program) -> list[fx.Node]:
    """The counts of `program`: float32 [T, n], from 0 to the number of tokens up to here."""
    scans = [n for n in program.graph.nodes if n.target is gw.scan_along_tokens.default]
    return [n for n in scans if n.kwargs["step"] == _step(int(n.meta["val"].shape[1]))]


def _reason(program: Program, node: fx.Node) -> str | None:
    """Why `node`, a running sum, is left."""
    axis, value = int(node.args[1]), node.meta["val"]  # type: ignore[arg-type]
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    sizes = [size_of(size) for size in value.shape]
    if sizes[axis] != tokens:
        return "it does not run along the tokens"
    if sum(not isinstance(size, int) for size in sizes) > 1:
        return "it has a value for each pair of tokens"
    if value.dtype not in _RESULTS:
        return f"it is of {value.dtype}"
    source = _counted(node)
    bounds = index_range(program, source)
    if bounds is None or bounds[0] < 0 or bounds[1] > 1:
        known = "any numbers" if bounds is None else f"from {bounds[0]} to {bounds[1]}"
        return f"it adds '{source.name}', whose values may be {known}, not 0 or 1"
    return None


def _counted(node: fx.Node) -> fx.Node:
    """What is added up; numbers that were 0 and 1 before they became floating-point ones."""
    source: Any = node.args[0]
    if source.target is aten._to_copy.default and source.meta["val"].dtype is torch.float32:
        inner: fx.Node = source.args[0]
        return inner
    return source  # type: ignore[no-any-return]


def _rewrite(program: Program, node: fx.Node) -> None:
    value, axis = node.meta["val"], int(node.args[1])  # type: ignore[arg-type]
    ones = to_rows(program, node, _counted(node), axis)
    ones = program.call(node, aten._to_copy.default, ones, dtype=torch.float32)
    step = _step(int(ones.meta["val"].shape[1]))
    found = program.call(node, gw.scan_along_tokens.default, [ones], [], step=step)
    found.meta["stack_trace"] = node.meta.get("stack_trace")
    if value.dtype is not torch.float32:
        found = program.call(node, aten._to_copy.default, found, dtype=value.dtype)
    program.replace(node, from_rows(program, node, found, value, axis))


@functools.cache
def _step(count: int) -> str:
    """The step of `count` counts beside each other: s + x, which is also what a token is given."""

    def add(state: Any, x: Any) -> Any:
        new = aten.add.Tensor(state, x)
        return new, new

    return ScanStep.of(add, [ScanState((count,))], [torch.zeros(1, count)]).text()
