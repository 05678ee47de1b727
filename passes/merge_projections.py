"""Linears that read the same value as one linear: queries, keys and values; gate and up."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import row_axis
from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor, Expression, Weight
from graphwright.passes.activation_patterns import ACTIVATION_PATTERNS
from graphwright.passes.base import Pass, Stage
from graphwright.passes.fuse_gated_activation import FuseGatedActivation
from graphwright.passes.head import logits_linears
from graphwright.passes.pattern import Match, Rewrite

__all__ = ["MergeProjections", "joined_name"]

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeProjections(Pass):
    """linear(x, w0), linear(x, w1), …  →  slices of one linear(x, cat(w0, w1, …)).

    Biases are concatenated too, zeros for those without. Leaves: the head; a linear whose result
    only goes into an activation (its epilogue); a computed or shared weight; x that is not
    [..., T, K], because the slices of its product would not be contiguous in a token's row.
    """

    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[type[Pass], ...]] = (FuseGatedActivation,)

    def run(self, program: Program) -> int:
        heads, activated = logits_linears(program), _activated(program)
        groups: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node in program.graph.nodes:
            if node.target is aten.linear.default:
                groups[node.args[0]].append(node)
        count = 0
        for x, linears in groups.items():
            if len(linears) < 2:
                continue
            reasons = {node: _problem(x, node, heads, activated) for node in linears}
            for node, reason in reasons.items():
                if reason:
                    self.miss(f"'{node.name}': {reason}")
            chosen = [node for node, reason in reasons.items() if reason is None]
            if len(chosen) < 2:
                continue
            if not self.allowed():
                break
            _merge(program, x, chosen)
            count += 1
        return count


def joined_name(names: list[str]) -> str:
    """One name for several: layer_q_proj, layer_k_proj -> layer_q_k_proj."""
    words = [name.split("_") for name in names]
    shortest = min(len(parts) for parts in words)
    prefix = _equal_at_start(words)
    suffix = min(_equal_at_start([parts[::-1] for parts in words]), shortest - prefix)
    middle = [part for parts in words for part in parts[prefix : len(parts) - suffix]]
    return "_".join(words[0][:prefix] + middle + words[0][len(words[0]) - suffix :])


def _equal_at_start(words: list[list[str]]) -> int:
    together = zip(*words, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda parts: len(set(parts)) == 1, together))


def _activated(program: Program) -> set[fx.Node]:
    """The values that an activation function takes; its single use of them is implied."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        for _, pattern in ACTIVATION_PATTERNS:
            match = Rewrite(pattern, pattern).match(node)
            if isinstance(match, Match) and all(
                user in match.nodes for user in match[_parameter(match)].users
            ):
                found.add(match[_parameter(match)])
    return found


def _parameter(match: Match) -> str:
    return next(iter(match.values))


def _problem(x: fx.Node, node: fx.Node, heads: set[fx.Node], activated: set[fx.Node]) -> str | None:
    value = x.meta["val"]
    weight: Any = node.args[1]
    bias: Any = node.args[2] if len(node.args) > 2 else None
    if node in heads:
        return "it makes the logits."
    if node in activated:
        return "its result only goes into an activation, which becomes its epilogue."
    if row_axis(value) != value.dim() - 2:
        return f"its input '{x.name}' {list(value.shape)} is not one row of channels a token."
    for parameter in (weight, bias):
        if parameter is not None and parameter.op != "get_attr":
            return f"its parameter '{parameter.name}' is computed."
    if len(weight.users) > 1:
        others = [user.name for user in weight.users if user is not node]
        return f"its weight '{weight.name}' is also used by '{others[0]}'."
    return None


def _merge(program: Program, x: fx.Node, linears: list[fx.Node]) -> None:
    weights = [_parameter_of(program, node, 1) for node in linears]
    biases = [_parameter_of(program, node, 2) for node in linears]
    merged_bias = None
    if any(bias is not None for bias in biases):
        filled = [
            bias or ConstantTensor.of(torch.zeros(weight.shape[0], dtype=weight.dtype), "zeros")
            for weight, bias in zip(weights, biases, strict=True)
            if weight is not None
        ]
        merged_bias = program.add_weight(
            joined_name([str(node.args[2].target) for node in linears if _has_bias(node)]),  # type: ignore[union-attr]
            Expression.of(aten.cat.default, filled),
        )
    merged_weight = program.add_weight(
        joined_name([str(node.args[1].target) for node in linears]),  # type: ignore[union-attr]
        Expression.of(aten.cat.default, weights),
    )
    first = min(linears)
    merged = program.call(first, aten.linear.default, x, merged_weight, merged_bias)
    merged.meta["stack_trace"] = first.meta.get("stack_trace", "")
    start = 0
    for node in linears:
        width = int(node.meta["val"].shape[-1])
        piece = program.call(first, aten.slice.Tensor, merged, -1, start, start + width)
        node.replace_all_uses_with(piece)
        start += width
    for node in linears:
        program.graph.erase_node(node)


def _has_bias(node: fx.Node) -> bool:
    return len(node.args) > 2 and node.args[2] is not None


def _parameter_of(program: Program, node: fx.Node, position: int) -> Weight | None:
    return program.weight_of(node.args[position]) if len(node.args) > position else None
