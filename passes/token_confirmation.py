"""Confirming by evaluation that each op keeps tokens apart, whatever its rule says.

Every op runs alone, on random rows: once for five tokens, once for three of them in another order.
Its result for the three must be those rows of its result for the five. That catches an op that
mixes tokens, that looks at a token's place in the step, or at how many tokens there are. What holds
for every op holds for the program. No weight is read: random numbers stand for them.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from graphwright.ir import PassError, Program
from graphwright.ir.source import source_line
from graphwright.passes.content_free import concrete_shape
from graphwright.passes.token_rule import TokenAxes

__all__ = ["confirm_token_axes"]

gw = torch.ops.gw
_TOKENS = 5
_CHOSEN = (3, 0, 4)  # some of them, in another order
_LARGEST = 1 << 20  # elements of an operand; products with larger weights are left to their rule


def confirm_token_axes(program: Program, axes: TokenAxes) -> list[str]:
    """Returns a sentence for each kind of node that could not be evaluated.

    Raises PassError when an op does not do what `axes` says.
    """
    seen: set[str] = set()
    left: list[str] = []
    for node, axis in axes.items():
        if axis is None or node.op != "call_function" or node.target is operator.getitem:
            continue
        if _has_state(program, node) or _signature(node, axes) in seen:
            continue
        seen.add(_signature(node, axes))
        reason = _confirm(program, node, axes, axis)
        if reason is not None:
            left.append(f"'{node.name}' ({node.target}) was not confirmed by evaluation: {reason}.")
    return left


def _has_state(program: Program, node: fx.Node) -> bool:
    """Does `node` look at other tokens lawfully, through the tensors of a state?"""
    inputs = {name for state in program.states for name in state.inputs}
    return any(n.op == "placeholder" and n.target in inputs for n in node.all_input_nodes)


def _signature(node: fx.Node, axes: TokenAxes) -> str:
    def describe(source: fx.Node) -> str:
        value = source.meta["val"]
        shape = tuple(map(str, value.shape)) if isinstance(value, torch.Tensor) else str(value)
        return f"{shape} {getattr(value, 'dtype', '')} {axes[source]}"

    return f"{node.target} {pytree.tree_map_only(fx.Node, describe, (node.args, node.kwargs))}"


def _confirm(program: Program, node: fx.Node, axes: TokenAxes, axis: int) -> str | None:
    """Why `node` could not be evaluated; None when it is confirmed."""
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta["val"], torch.Tensor)]
    shapes = {source: concrete_shape(program, source, _TOKENS) for source in tensors}
    if any(math.prod(shape) > _LARGEST for shape in shapes.values()):
        return f"it has an operand of more than {_LARGEST} elements"
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(_CHOSEN)
    many = {source: _random(source, shapes[source], generator) for source in tensors}
    few: dict[fx.Node, torch.Tensor] = {}
    for source, value in many.items():
        by = axes[source]
        few[source] = value if by is None else value.index_select(by, rows)
    try:
        whole = _run(program, node, many, _TOKENS)
        part = _run(program, node, few, len(_CHOSEN))
    except (RuntimeError, IndexError) as error:
        return str(error).splitlines()[0].rstrip(".")
    for want, got in zip(whole, part, strict=True):
        expected = want.index_select(axis, rows)
        if not _agree(got, expected):
            raise PassError(
                f"node '{node.name}' ({node.target}) does not keep tokens apart{source_line(node)}:"
                f" alone, the tokens {_CHOSEN} of {_TOKENS} get another result."
            )
    return None


def _agree(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for rounding: sums of large terms may cancel, so the largest result counts."""
    if got.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(got, expected)
    finite = expected[expected.isfinite()].abs().double()
    largest = max(1.0, float(finite.max())) if finite.numel() else 1.0
    return torch.allclose(got, expected, 1e-4, 1e-5 * largest, equal_nan=True)


def _random(source: fx.Node, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random numbers; integers are 0 or 1, so that they also serve as indices."""
    dtype: torch.dtype = source.meta["val"].dtype
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _run(
    program: Program, node: fx.Node, values: dict[fx.Node, torch.Tensor], tokens: int
) -> list[torch.Tensor]:
    """The tensors that `node` gives for these operands in a step of so many tokens."""

    def value(source: fx.Node) -> Any:
        if source in values:
            return values[source]
        return _size(program, source.meta["val"], tokens)

    assert callable(node.target)
    args, kwargs = pytree.tree_map_only(fx.Node, value, (node.args, node.kwargs))
    with torch.no_grad():
        result = node.target(*args, **kwargs)
    results = result if isinstance(result, (tuple, list)) else [result]
    return [item for item in results if isinstance(item, torch.Tensor)]


def _size(program: Program, size: Any, tokens: int) -> int:
    expression = size.node.expr
    counted = {s: tokens for s in expression.free_symbols if program.dims.get(str(s)) == "T"}
    return int(expression.subs(counted))
