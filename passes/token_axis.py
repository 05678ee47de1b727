"""Where the token axis of every value lies, and the proof that no op mixes tokens.

A program may serve any mix of sequences in one step only if each token's values depend on that
token alone, caches aside. So every op must carry the token axis of its inputs to its output element
by element, and no value may depend on how many tokens the step has, or on a token's place among
them. An op that this analysis does not know is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from graphwright.ir import Level, PassError, Program
from graphwright.ir.layout import size_of
from graphwright.ir.source import source_line
from graphwright.ir.verifier import allowed_at
from graphwright.passes.content_free import is_shape_only
from graphwright.passes.token_mixers import explain
from graphwright.passes.token_rule import MixesTokensError, TokenAxes
from graphwright.passes.token_rules import token_rule

__all__ = ["TokenAxisError", "find_token_axes", "refuse_unknown_ops"]

aten = torch.ops.aten
# Arguments that say how large a result is; a size anywhere else is a number to compute with.
_SIZES: dict[Any, tuple[int, ...]] = {
    **dict.fromkeys((aten.full.default, aten.zeros.default, aten.ones.default), (0,)),
    **dict.fromkeys(
        (aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.expand.default,
         aten.new_ones.default, aten.new_zeros.default, aten.new_full.default), (1,)),
    aten.slice.Tensor: (2, 3), aten.arange.default: (0,), aten.arange.start: (0, 1),
    aten.arange.start_step: (0, 1, 2),
}  # fmt: skip
_CONSTANTS = {
    aten.full.default, aten.zeros.default, aten.ones.default, aten.new_ones.default,
    aten.new_zeros.default, aten.new_full.default, aten.expand.default, aten.full_like.default,
    aten.zeros_like.default, aten.ones_like.default,
}  # fmt: skip
_COUNTS = {aten.arange.default, aten.arange.start, aten.arange.start_step}
_SIZE_TYPES = (torch.SymInt, torch.SymFloat, torch.SymBool)


class TokenAxisError(PassError):
    """The op of `node` does not keep tokens apart, or is not known to."""

    node: fx.Node | None = None


def _error(node: fx.Node, reason: str) -> TokenAxisError:
    error = TokenAxisError(
        f"node '{node.name}' ({node.target}) {reason}{source_line(node)}. Only attention and "
        "causal convolutions may look at other tokens."
    )
    error.node = node
    return error


def find_token_axes(program: Program) -> TokenAxes:
    """The token axis of every node; None where the value is the same for all tokens and steps.

    Raises TokenAxisError naming the first op that mixes tokens or is unknown, with its source line.
    """
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    axes: TokenAxes = {}
    for node in program.graph.nodes:
        try:
            axes[node] = _axis(node, axes, tokens)
        except MixesTokensError as reason:
            raise _error(node, str(reason)) from None
    return axes


def refuse_unknown_ops(program: Program) -> None:
    """Raises TokenAxisError for the first op that no pass knows, saying what it does to the tokens.

    For programs about to be normalized, where attention is still there and nothing is proven: token
    axes are read off the shapes.
    """
    for node in program.graph.nodes:
        if node.op == "call_function" and not allowed_at(Level.NORMALIZED, node.target):
            raise _error(node, _unknown(node))


def _unknown(node: fx.Node) -> str:
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return "draws random numbers: the same tokens would give other logits each time"
    sizes = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), _SIZE_TYPES)]
    if sizes:
        return f"computes with the number of tokens ('{sizes[0].name}')"
    axes: TokenAxes = dict.fromkeys(node.all_input_nodes)
    for source in axes:
        shape = getattr(source.meta.get("val"), "shape", ())
        symbolic = [i for i, size in enumerate(shape) if isinstance(size, torch.SymInt)]
        axes[source] = symbolic[0] if symbolic else None
    if any(axis is not None for axis in axes.values()):
        return explain(node, axes)
    return "is an op that no pass and no kernel knows"


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
        _check_size(node)
        return None
    if node.target is operator.getitem:
        return axes[node.all_input_nodes[0]]
    inputs = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    if is_shape_only(node) or not any(axes[n] is not None for n in inputs):
        _check_numbers(node, axes)
        return _of_constant(node, tokens)
    axis = token_rule(node)(node, axes)
    _check_numbers(node, axes)
    _check_result(outputs, axis, tokens)
    return axis


def _check_size(node: fx.Node) -> None:
    """A number may follow from other numbers and from sizes, never from the values of a tensor."""
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    if tensors and node.target is not aten.sym_size.int:
        raise MixesTokensError(f"makes a number of the values of '{tensors[0].name}'")


def _check_numbers(node: fx.Node, axes: TokenAxes) -> None:
    """Numbers that depend on the step may say how large a result is, and nothing else."""
    sizes = _SIZES.get(node.target, ())
    arguments = [(i in sizes, argument) for i, argument in enumerate(node.args)]
    for is_size, argument in [*arguments, *((False, value) for value in node.kwargs.values())]:
        for source in _numbers(argument):
            if not is_size:
                raise MixesTokensError(f"computes with the number of tokens ('{source.name}')")
            if node.target is aten.slice.Tensor:
                _check_slice(node, axes, source)
            elif node.target in _COUNTS and isinstance(node.meta["val"].shape[0], int):
                raise MixesTokensError(f"computes with the number of tokens ('{source.name}')")


def _check_slice(node: fx.Node, axes: TokenAxes, size: fx.Node) -> None:
    source: Any = node.args[0]
    dim = int(node.args[1]) % source.meta["val"].dim()  # type: ignore[arg-type]
    if axes[source] != dim:
        raise MixesTokensError(
            f"takes a part of '{source.name}' that depends on the number of tokens ('{size.name}')"
        )


def _numbers(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(
        argument, lambda n: found.append(n) if isinstance(n.meta.get("val"), _SIZE_TYPES) else None
    )
    return found


def _of_constant(node: fx.Node, tokens: Any) -> int | None:
    """A value that no token went into: it may have no token axis, or equal entries along it."""
    value = node.meta["val"]
    outputs = value if isinstance(value, (tuple, list)) else [value]
    found = [
        i
        for item in outputs
        if isinstance(item, torch.Tensor)
        for i, size in enumerate(item.shape)
        if isinstance(size, torch.SymInt)
    ]
    if not found:
        return None
    if len(found) > 1:
        raise MixesTokensError("has a value for each pair of tokens")
    if node.target not in _CONSTANTS or size_of(value.shape[found[0]]) != tokens:
        raise MixesTokensError("numbers the tokens of this step, not those of a sequence")
    return found[0]


def _check_result(outputs: Iterable[Any], axis: int | None, tokens: Any) -> None:
    for value in outputs:
        if not isinstance(value, torch.Tensor):
            continue
        symbolic = [i for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
        if symbolic != [axis] or size_of(value.shape[symbolic[0]]) != tokens:
            raise MixesTokensError(f"gives {tuple(value.shape)}, which is not one row a token")
