"""One spelling for each thing that torch can say in several ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from graphwright.ir.program import Program
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.canonical_choices import CHOICE_RULES
from graphwright.passes.canonical_complex import COMPLEX_RULES
from graphwright.passes.canonical_layout import LAYOUT_RULES
from graphwright.passes.canonical_matrix import MATRIX_RULES
from graphwright.passes.canonical_numbers import NUMBER_RULES
from graphwright.passes.canonical_softmax import SOFTMAX_RULES
from graphwright.passes.canonical_writes import WRITE_RULES
from graphwright.passes.drop_no_ops import DropNoOps, changes_nothing

__all__ = ["CanonicalizeOps"]

Rule = Callable[[Program, fx.Node], fx.Node | None]
_TABLES = (
    LAYOUT_RULES, MATRIX_RULES, NUMBER_RULES, SOFTMAX_RULES, CHOICE_RULES, WRITE_RULES,
    COMPLEX_RULES,
)  # fmt: skip
_RULES: dict[Any, tuple[Rule, ...]] = {
    target: tuple(table[target] for table in _TABLES if target in table)
    for target in {key: None for table in _TABLES for key in table}
}
_MOST_SWEEPS = 50  # a rule that undoes another one would run forever


@dataclass(frozen=True)
class CanonicalizeOps(Pass):
    """flatten, squeeze → reshape without symbolic sizes (-1 counts tokens); t, transpose → permute;
    split, chunk, unbind → slice, select; addmm, mm, matmul by a weight or of a weight → linear;
    baddbmm → bmm + x; scalars → Tensor overloads; x * x, square → pow(x, 2); minimum, maximum with
    one number → clamp; exp(x) / sum(exp(x)) → softmax; log_softmax → a sum of exponentials; outer
    product by matmul → mul; norms behind the axis of the tokens → in rows; reshapes meet and
    cancel; what is written whole → what was written; topk, sort, max, argmax along the last axis →
    gw.top_k; gather, scatter, one_hot → comparisons; unfold → a stack of slices; complex numbers →
    their real and imaginary parts.

    Leaves: sizes that need two symbolic numbers; a split along the tokens.
    """

    stage: ClassVar = Stage.NORMALIZE
    exactness: ClassVar = Exactness.REASSOCIATING  # linear may sum in another order than addmm
    after: ClassVar = (DropNoOps,)
    optional: ClassVar = False

    def run(self, program: Program) -> int:
        """Sweeps over the graph until no rule fires; counts replaced nodes."""
        total = 0
        for _ in range(_MOST_SWEEPS):
            count = sum(_canonicalize(program, node) for node in list(program.graph.nodes))
            program.drop_dead()
            total += count
            if count == 0:
                return total
        raise AssertionError("the canonical spellings do not settle")


def _canonicalize(program: Program, node: fx.Node) -> int:
    """1 when `node` was replaced or is no longer needed, else 0."""
    if node.op != "call_function" or node._erased:
        return 0
    if changes_nothing(node):
        program.replace(node, node.args[0])  # type: ignore[arg-type]
        return 1
    for rule in _RULES.get(node.target, ()):
        new = rule(program, node)
        if new is not None:
            if "stack_trace" in node.meta:
                new.meta.setdefault("stack_trace", node.meta["stack_trace"])
            program.replace(node, new)
            return 1
    return 0
