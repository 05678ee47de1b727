"""Short convolutions along tokens, and token shifts, become one gw.conv_along_tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir import ConstantTensor, Expression, Program, Weight
from graphwright.ir.layout import size_of
from graphwright.passes.base import Pass, Stage
from graphwright.passes.chained_convs import separate_chained_convs
from graphwright.passes.layout_chains import collapse_chains
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.token_convs import TokenConv, find_shift, find_token_conv, is_conv
from graphwright.passes.token_rows import from_rows, to_rows
from graphwright.passes.token_windows import NoWindowError, Window

__all__ = ["RecognizeCausalConv"]

aten, gw = torch.ops.aten, torch.ops.gw


@dataclass(frozen=True)
class RecognizeCausalConv(Pass):
    """conv1d over padded tokens, cut to their number  →  gw.conv_along_tokens over [T, C].
    One whose padding serves a second one behind it, too, gets its own; its bias moves there.
    One that mixes channels becomes a linear, for each group, over the rows that a token sees.
    x[t - n], by padding, joining with zeros and cutting  →  gw.conv_along_tokens.

    Leaves: what looks ahead, strides, many groups of channels, kernels that are computed,
    convolutions along another axis than the tokens.
    """

    stage: ClassVar[Stage] = Stage.ATTENTION
    after: ClassVar = (RecognizeAttention,)  # the masks, which are cut and padded too, are gone
    optional: ClassVar = False  # the states cannot go in without it

    def run(self, program: Program) -> int:
        rewrites = separate_chained_convs(program)
        # From the last to the first: shifts of shifts add up, and then the inner one is dead.
        for node in reversed(list(program.graph.nodes)):
            if node._erased:
                continue
            try:
                if is_conv(node):
                    _rewrite_conv(program, find_token_conv(program, node))
                elif (window := find_shift(program, node)) is not None:
                    _rewrite_shift(program, node, window)
                else:
                    continue
            except NoWindowError as reason:
                self.miss(f"{reason}.")
                continue
            rewrites += 1
            program.graph.eliminate_dead_code()
        if rewrites:
            collapse_chains(program)
        return rewrites


def _rewrite_conv(program: Program, found: TokenConv) -> None:
    node = found.node
    x = to_rows(program, node, found.window.build(program, node), -1)
    y = _by_channel(program, found, x) if found.depthwise else _by_matrix(program, found, x)
    y.meta["stack_trace"] = node.meta.get("stack_trace")
    result = from_rows(program, node, y, node.meta["val"], -1)
    program.replace(node, result)
    for each in found.cut.nodes:
        if each in found.cut.slices:
            source: Any = each.args[0]
            program.replace(each, source)
        else:
            program.infer(each)


def _by_channel(program: Program, found: TokenConv, x: fx.Node) -> fx.Node:
    node, taps = found.node, len(found.lags)
    kernel: Weight = Expression.of(aten.reshape.default, found.weight, [-1, taps])
    if found.lags != tuple(reversed(range(taps))) or taps == 1:
        kernel = Expression.of(_spread, kernel, list(found.lags), _length(found.lags))
    weight = program.add_weight(f"{node.name}_kernel", kernel)
    return program.call(node, gw.conv_along_tokens.default, x, weight, found.bias)


def _by_matrix(program: Program, found: TokenConv, x: fx.Node) -> fx.Node:
    """Side by side the rows that a token sees, [T, in * taps], times the kernel as a matrix."""
    node, taps = found.node, len(found.lags)
    if found.lags != (0,):
        channels = int(x.meta["val"].shape[1])
        chosen = _spread(torch.eye(taps).repeat(channels, 1), found.lags, _length(found.lags))
        weight = ConstantTensor.of(chosen, "one output for each token that the kernel reads")
        picks = program.add_weight(f"{node.name}_taps", weight)
        x = program.call(node, gw.conv_along_tokens.default, x, picks, None)
    width = found.weight.shape[1] * taps
    parts = []
    for group in range(found.groups):
        rows = x
        if found.groups > 1:
            start = group * width
            rows = program.call(node, aten.slice.Tensor, x, 1, start, start + width)
        matrix = Expression.of(aten.reshape.default, _of_group(found, group), [-1, width])
        operands = [rows, program.add_weight(f"{node.name}_matrix", matrix)]
        bias = program.weight_of(found.bias)
        if bias is not None:
            part = _of_group(found, group, bias)
            operands.append(program.add_weight(f"{node.name}_bias", part))
        parts.append(program.call(node, aten.linear.default, *operands))
    return parts[0] if len(parts) == 1 else program.call(node, aten.cat.default, parts, 1)


def _of_group(found: TokenConv, group: int, weight: Weight | None = None) -> Weight:
    """The outputs of one group in the kernel, or in another weight with as many rows."""
    weight = weight or found.weight
    if found.groups == 1:
        return weight
    count = weight.shape[0] // found.groups
    return Expression.of(aten.slice.Tensor, weight, 0, group * count, (group + 1) * count)


def _rewrite_shift(program: Program, node: fx.Node, window: Window) -> None:
    value = node.meta["val"]
    axis = next(i for i, s in enumerate(value.shape) if size_of(s) == window.tokens)
    if window.left == 0:
        program.replace(node, window.build(program, node))
        return
    x = to_rows(program, node, window.build(program, node), axis)
    lags = (window.left,)
    kernel = _spread(torch.ones(int(x.meta["val"].shape[1]), 1), lags, _length(lags))
    weight = ConstantTensor.of(kernel.to(value.dtype), f"a shift by {window.left} tokens")
    y = program.call(
        node, gw.conv_along_tokens.default, x, program.add_weight("shift", weight), None
    )
    y.meta["stack_trace"] = node.meta.get("stack_trace")
    program.replace(node, from_rows(program, node, y, value, axis))


def _length(lags: Sequence[int]) -> int:
    """Taps of a kernel that reads the tokens `lags` before, with room for one to keep."""
    return max(2, max(lags) + 1)


def _spread(kernel: torch.Tensor, lags: Sequence[int], length: int) -> torch.Tensor:
    """[N, taps] as [N, length], whose last column is for the token itself: tap j at `lags[j]`."""
    result = kernel.new_zeros(kernel.shape[0], length)
    result[:, [length - 1 - lag for lag in lags]] = kernel
    return result
