"""Where the token axis of every value lies, and the proof that no op mixes tokens.

A program may serve any mix of sequences in one step only if each token's values depend on that
token alone, caches aside. So every op must carry the token axis of its inputs to its output element
by element. An op that this analysis does not know is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from graphwright.ir import PassError, Program
from graphwright.ir.layout import size_of
from graphwright.passes.content_free import is_shape_only
from graphwright.passes.token_rules import MixesTokensError, TokenAxes, token_rule

__all__ = ["find_token_axes"]

aten = torch.ops.aten
_TAKES_SIZES = {
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.expand.default,
    aten.full.default, aten.zeros.default, aten.ones.default, aten.new_ones.default,
    aten.new_zeros.default, aten.new_full.default, aten.slice.Tensor, aten.sym_size.int,
    aten.arange.default, aten.arange.start, aten.arange.start_step,
}  # fmt: skip
_CONSTANTS = {
    aten.full.default, aten.zeros.default, aten.ones.default, aten.new_ones.default,
    aten.new_zeros.default, aten.new_full.default, aten.expand.default, aten.full_like.default,
    aten.zeros_like.default, aten.ones_like.default,
}  # fmt: skip


def find_token_axes(program: Program) -> TokenAxes:
    """The token axis of every node; None where the value is the same for all tokens.

    Raises PassError naming the first op, with its source line, that mixes tokens or is unknown.
    """
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    axes: TokenAxes = {}
    for node in program.graph.nodes:
        try:
            axes[node] = _axis(node, axes, tokens)
        except MixesTokensError as reason:
            raise PassError(
                f"node '{node.name}' ({node.target}) {reason}{_source(node)}. Only attention may "
                "look at other tokens."
            ) from None
    return axes


def _axis(node: fx.Node, axes: TokenAxes, tokens: Any) -> int | None:
    if node.op == "placeholder":
        return 0 if node.target in ("tokens", "positions") else None
    if node.op == "get_attr":
        return None
    if node.op == "output":
        result: Any = node.args[0]
        value = result[0] if isinstance(result, (tuple, list)) else result
        if axes[value] != 0:
            raise MixesTokensError("does not return one row of logits a token")
        return None
    value = node.meta["val"]
    outputs = value if isinstance(value, (tuple, list)) else [value]
    if not any(isinstance(item, torch.Tensor) for item in outputs):
        return None  # a size; its users are checked
    _check_sizes(node)
    inputs = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    if node.target is operator.getitem:
        return axes[node.all_input_nodes[0]]
    if is_shape_only(node) or not any(axes[n] is not None for n in inputs):
        return _of_constant(node, tokens)
    axis = token_rule(node)(node, axes)
    _check_result(outputs, axis, tokens)
    return axis


def _check_sizes(node: fx.Node) -> None:
    for argument in node.all_input_nodes:
        if isinstance(argument.meta.get("val"), torch.SymInt) and node.target not in _TAKES_SIZES:
            raise MixesTokensError(f"computes with the number of tokens '{argument.name}'")


def _of_constant(node: fx.Node, tokens: Any) -> int | None:
    """A value that no token went into: it may have no token axis, or equal entries along it."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return None
    found = [i for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
    if not found:
        return None
    if node.target not in _CONSTANTS or len(found) > 1 or size_of(value.shape[found[0]]) != tokens:
        raise MixesTokensError("numbers the tokens of this step, not those of a sequence")
    return found[0]


def _check_result(outputs: Iterable[Any], axis: int | None, tokens: Any) -> None:
    for value in outputs:
        if not isinstance(value, torch.Tensor):
            continue
        symbolic = [i for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
        if symbolic != [axis] or size_of(value.shape[symbolic[0]]) != tokens:
            raise MixesTokensError(f"gives {tuple(value.shape)}, which is not one row a token")


def _source(node: fx.Node) -> str:
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    return f" (from {' '.join(line.strip() for line in trace[-2:])})" if trace else ""
