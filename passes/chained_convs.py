"""Convolutions that feed each other over one padding: each gets a padding of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.ir import Expression, Program
from graphwright.ir.layout import size_of
from graphwright.passes.token_convs import conv_arguments, first_number, is_conv
from graphwright.passes.token_windows import NoWindowError, Window, trace_window

__all__ = ["separate_chained_convs"]

aten = torch.ops.aten


def separate_chained_convs(program: Program) -> int:
    """conv(conv(pad(x)))  →  conv(pad(conv(pad(x)))), where the inner one gives a value for each
    token and for some places before the first.

    There it gives its bias alone, as it reads zeros. So its bias moves to the outer one, whose
    every tap reads it, and without a bias what is before the first token is zero. Returns how many
    were separated.
    """
    count = 0
    for outer in list(program.graph.nodes):
        if not is_conv(outer):
            continue
        inner: Any = conv_arguments(outer)["input"]
        before = _places_before(program, inner, outer)
        if before is not None:
            _separate(program, inner, outer, *before)
            count += 1
    if count:
        program.drop_dead()
    return count


def _places_before(program: Program, inner: fx.Node, outer: fx.Node) -> tuple[Window, int] | None:
    """The tokens that `inner` reads, and how many values it gives in front of theirs; None where
    that is another case."""
    if not is_conv(inner) or len(inner.users) != 1 or inner.meta["val"].dim() != 3:
        return None
    one, two = conv_arguments(inner), conv_arguments(outer)
    plain = [_is_plain(program, one), _is_plain(program, two), _pads_nothing(two)]
    if not all(plain) or not _pads_nothing(one):
        return None
    try:
        window = trace_window(program, one["input"], 2)
    except NoWindowError:
        return None
    left = window.left - _reach(program, one)
    gives = size_of(inner.meta["val"].shape[2])
    return (window, left) if left > 0 and gives == window.tokens + left else None


def _is_plain(program: Program, given: dict[str, Any]) -> bool:
    """Stride 1, and weights that are known."""
    kernel, bias = program.weight_of(given["weight"]), given.get("bias")
    known = kernel is not None and (bias is None or program.weight_of(bias) is not None)
    return known and first_number(given["stride"], 1) == 1 and not given.get("transposed")


def _pads_nothing(given: dict[str, Any]) -> bool:
    padding = given["padding"]
    return padding == "valid" or (padding != "same" and first_number(padding, 0) == 0)


def _reach(program: Program, given: dict[str, Any]) -> int:
    """How many elements before its last one the convolution reads."""
    weight = program.weight_of(given["weight"])
    assert weight is not None
    return first_number(given["dilation"], 1) * (weight.shape[2] - 1)


def _separate(
    program: Program, inner: fx.Node, outer: fx.Node, window: Window, before: int
) -> None:
    one, two = conv_arguments(inner), conv_arguments(outer)
    x = window.build(program, inner)
    x = program.call(inner, aten.constant_pad_nd.default, x, [_reach(program, one), 0])
    y = program.call(inner, aten.conv1d.default, x, one["weight"], None, *_options(one))
    y = program.call(inner, aten.constant_pad_nd.default, y, [before, 0])
    bias = _bias(program, one, two, inner.name)
    new = program.call(outer, aten.conv1d.default, y, two["weight"], bias, *_options(two))
    for node, old in ((y, inner), (new, outer)):
        node.meta["stack_trace"] = old.meta.get("stack_trace")
    program.replace(outer, new)


def _options(given: dict[str, Any]) -> tuple[Any, ...]:
    return [1], [0], [first_number(given["dilation"], 1)], int(given["groups"])


def _bias(program: Program, one: dict[str, Any], two: dict[str, Any], name: str) -> fx.Node | None:
    """What the outer convolution adds when the inner one adds nothing."""
    first, second = (program.weight_of(given.get("bias")) for given in (one, two))
    if first is None:
        return two.get("bias")
    kernel, groups = program.weight_of(two["weight"]), int(two["groups"])
    return program.add_weight(
        f"{name}_bias", Expression.of(_through, kernel, first, second, groups)
    )


def _through(
    kernel: torch.Tensor, first: torch.Tensor, second: torch.Tensor | None, groups: int
) -> torch.Tensor:
    """[out]: `second` plus what a kernel [out, in / groups, taps] makes of `first` [in] at each
    of its taps."""
    outputs, inner, _ = kernel.shape
    sums = kernel.sum(2).reshape(groups, outputs // groups, inner)
    result = (sums * first.reshape(groups, 1, inner)).sum(2).reshape(outputs)
    return result if second is None else result + second
