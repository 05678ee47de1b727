"""Reshapes around linears, moved behind them and merged, so that epilogues meet their linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import is_view
from graphwright.ir.program import Program
from graphwright.passes.base import Exactness, Pass, Stage

__all__ = ["LiftReshapes"]

aten = torch.ops.aten


@dataclass(frozen=True)
class LiftReshapes(Pass):
    """linear(reshape(x))  →  reshape(linear(x)), and reshape(reshape(x))  →  reshape(x) or x.

    Models that flatten [1, T, K] to [T, K] around a product lose that. Leaves: a reshape that
    changes the channels of a row or their number; one that is no free row view.
    """

    stage: ClassVar[Stage] = Stage.FUSE
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, program: Program) -> int:
        count = 0
        for node in list(program.graph.nodes):
            changed = self._lift(program, node) or self._merge(program, node)
            count += changed
        return count

    def _lift(self, program: Program, node: fx.Node) -> bool:
        if node.target is not aten.linear.default or not _is_reshape(node.args[0]):
            return False
        flat: Any = node.args[0]
        x = flat.args[0]
        if x.meta["val"].shape[-1] != flat.meta["val"].shape[-1]:
            self.miss(f"'{node.name}': '{flat.name}' changes the channels of '{x.name}'.")
            return False
        if not self.allowed():
            return False
        product = program.call(node, aten.linear.default, x, *node.args[1:])
        product.meta["stack_trace"] = node.meta.get("stack_trace", "")
        program.replace(node, program.call(node, aten.reshape.default, product, _sizes(node)))
        return True

    def _merge(self, program: Program, node: fx.Node) -> bool:
        if not _is_reshape(node):
            return False
        source: Any = node.args[0]
        while _is_reshape(source):
            source = source.args[0]
        same = _sizes(source) == _sizes(node)
        if source is node.args[0] and not same:
            return False
        if not self.allowed():
            return False
        if same:
            program.replace(node, source)
        else:
            node.args = (source, _sizes(node))
        return True


def _is_reshape(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.reshape.default and is_view(node)


def _sizes(node: fx.Node) -> list[int]:
    return [-1 if isinstance(size, torch.SymInt) else size for size in node.meta["val"].shape]
