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
from graphwright.passes.layout_chains import collapse_chains
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.token_windows import Cut, NoWindowError, Window, find_cut, trace_window

__all__ = ["RecognizeCausalConv", "find_shift", "find_token_conv", "is_conv"]

aten, gw = torch.ops.aten, torch.ops.gw
_CONVS = {aten.conv1d.default, aten.conv1d.padding, aten.convolution.default}
_SHIFTS = {aten.slice.Tensor, aten.constant_pad_nd.default, aten.cat.default}
LONGEST = 64
"""Tokens back that a convolution may read: a sequence keeps as many rows for each convolution."""


@dataclass(frozen=True)
class RecognizeCausalConv(Pass):
    """conv1d over padded tokens, cut to their number  →  gw.conv_along_tokens over [T, C].
    A dense one becomes gw.linear over the rows that each token sees.
    x[t - n], by padding, joining with zeros and cutting  →  gw.conv_along_tokens.

    Leaves: what looks ahead, strides, groups of channels, kernels that are computed, convolutions
    along another axis than the tokens.
    """

    stage: ClassVar[Stage] = Stage.ATTENTION
    after: ClassVar = (RecognizeAttention,)  # the masks, which are cut and padded too, are gone
    optional: ClassVar = False  # the states cannot go in without it

    def run(self, program: Program) -> int:
        rewrites = 0
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


@dataclass(frozen=True)
class TokenConv:
    """Tap j of the kernel [out, in / groups, taps] reads the token `lags[j]` before."""

    node: fx.Node
    window: Window
    cut: Cut
    lags: tuple[int, ...]
    weight: Weight
    bias: fx.Node | None
    groups: int


def is_conv(node: fx.Node) -> bool:
    """A one-dimensional convolution."""
    return node.op == "call_function" and node.target in _CONVS


def find_token_conv(program: Program, node: fx.Node) -> TokenConv:
    """The causal convolution that `node` is. Raises NoWindowError with the reason if it is none."""
    given = _arguments(node)
    x, kernel = given["input"], program.weight_of(given["weight"])
    name, rank = f"the convolution '{node.name}'", x.meta["val"].dim()
    if kernel is None:
        raise NoWindowError(f"the kernel of {name} is computed: '{given['weight'].name}'")
    if rank - len(kernel.shape) not in (-1, 0) or len(kernel.shape) != 3:
        raise NoWindowError(f"{name} has a kernel {kernel.shape} over an input of rank {rank}")
    if given.get("transposed"):
        raise NoWindowError(f"{name} is transposed")
    stride, dilation = _number(given["stride"], 1), _number(given["dilation"], 1)
    groups, taps = int(given["groups"]), kernel.shape[2]
    if stride != 1:
        raise NoWindowError(f"{name} has stride {stride}: it gives no row for each token")
    if groups != 1 and kernel.shape[1] != 1:
        raise NoWindowError(f"{name} works in {groups} groups of {kernel.shape[1]} channels")
    if any(size_of(size) != 1 for size in x.meta["val"].shape[:-2]):
        raise NoWindowError(f"{name} has a batch of {x.meta['val'].shape[0]}")
    bias = given.get("bias")
    if bias is not None and program.weight_of(bias) is None:
        raise NoWindowError(f"the bias of {name} is computed: '{bias.name}'")
    window = _padded(trace_window(program, x, rank - 1), given["padding"], dilation * (taps - 1))
    cut = find_cut(program, node, rank - 1, window.left)
    lags = tuple(cut.left - j * dilation for j in range(taps))
    if min(lags) < 0:
        raise NoWindowError(f"{name} is not causal: it reads {-min(lags)} tokens ahead")
    if max(lags) > LONGEST:
        raise NoWindowError(f"{name} reads {max(lags)} tokens back; at most {LONGEST} are kept")
    return TokenConv(node, window, cut, lags, kernel, bias, groups)


def find_shift(program: Program, node: fx.Node) -> Window | None:
    """The tokens that `node` moves along their axis; None if it does nothing of the kind.

    Raises NoWindowError for one that cannot be decoded.
    """
    value: Any = node.meta.get("val")
    if node.op != "call_function" or node.target not in _SHIFTS or not value.is_floating_point():
        return None
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    axes = [i for i, size in enumerate(value.shape) if size_of(size) == tokens]
    if len(axes) != 1:
        return None
    try:
        window = trace_window(program, node, axes[0])
    except NoWindowError:
        return None  # the proof of token axes says what is wrong with it, where anything is
    if window.base is node:
        return None
    if window.left < 0:
        raise NoWindowError(f"'{node.name}' is not causal: it reads {-window.left} tokens ahead")
    if window.left > LONGEST:
        raise NoWindowError(
            f"'{node.name}' reads {window.left} tokens back; at most {LONGEST} are kept"
        )
    return window


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an aten op by name, with the schema's defaults."""
    assert isinstance(node.target, torch._ops.OpOverload)
    parameters = node.target._schema.arguments
    given = {p.name: p.default_value for p in parameters}
    given.update(zip((p.name for p in parameters), node.args, strict=False))
    return {**given, **node.kwargs}


def _number(values: Any, default: int) -> int:
    values = values if isinstance(values, (list, tuple)) else [values]
    return int(values[0]) if values else default


def _padded(window: Window, padding: Any, reach: int) -> Window:
    if padding == "same":
        return window.padded(reach // 2, reach - reach // 2)
    both = 0 if padding == "valid" else _number(padding, 0)
    return window.padded(both, both)


def _rewrite_conv(program: Program, found: TokenConv) -> None:
    node, taps = found.node, len(found.lags)
    x = _rows(program, node, found.window, -1)
    outputs, _, _ = found.weight.shape
    bias: Any = found.bias
    if found.groups == 1 and found.weight.shape[1] > 1:
        if found.lags != (0,):
            channels = int(x.meta["val"].shape[1])
            chosen = _spread(torch.eye(taps).repeat(channels, 1), found.lags, _length(found.lags))
            picks = ConstantTensor.of(chosen, "one output for each token that the kernel reads")
            x = program.call(
                node, gw.conv_along_tokens.default, x, program.add_weight("taps", picks), None
            )
        matrix = Expression.of(aten.reshape.default, found.weight, [outputs, -1])
        weight = program.add_weight(f"{node.name}_matrix", matrix)
        y = program.call(node, aten.linear.default, x, weight, *([bias] if bias else []))
    else:
        kernel: Weight = Expression.of(aten.reshape.default, found.weight, [outputs, taps])
        if found.lags != tuple(reversed(range(taps))) or taps == 1:
            kernel = Expression.of(_spread, kernel, list(found.lags), _length(found.lags))
        weight = program.add_weight(f"{node.name}_kernel", kernel)
        y = program.call(node, gw.conv_along_tokens.default, x, weight, bias)
    y.meta["stack_trace"] = node.meta.get("stack_trace")
    result = _back(program, node, y, node.meta["val"], -1)
    program.replace(node, result)
    for each in found.cut.nodes:
        if each in found.cut.slices:
            source: Any = each.args[0]
            program.replace(each, source)
        else:
            program.infer(each)


def _rewrite_shift(program: Program, node: fx.Node, window: Window) -> None:
    value = node.meta["val"]
    axis = next(i for i, s in enumerate(value.shape) if size_of(s) == window.tokens)
    if window.left == 0:
        program.replace(node, window.build(program, node))
        return
    x = _rows(program, node, window, axis)
    lags = (window.left,)
    kernel = _spread(torch.ones(int(x.meta["val"].shape[1]), 1), lags, _length(lags))
    weight = ConstantTensor.of(kernel.to(value.dtype), f"a shift by {window.left} tokens")
    y = program.call(
        node, gw.conv_along_tokens.default, x, program.add_weight("shift", weight), None
    )
    y.meta["stack_trace"] = node.meta.get("stack_trace")
    program.replace(node, _back(program, node, y, value, axis))


def _length(lags: Sequence[int]) -> int:
    """Taps of a kernel that reads the tokens `lags` before, with room for one to keep."""
    return max(2, max(lags) + 1)


def _spread(kernel: torch.Tensor, lags: Sequence[int], length: int) -> torch.Tensor:
    """[N, taps] as [N, length], whose last column is for the token itself: tap j at `lags[j]`."""
    result = kernel.new_zeros(kernel.shape[0], length)
    result[:, [length - 1 - lag for lag in lags]] = kernel
    return result


def _rows(program: Program, before: fx.Node, window: Window, axis: int) -> fx.Node:
    """The base of `window` as [T, C], the other axes in their order."""
    node = window.build(program, before)
    rank = node.meta["val"].dim()
    axis %= rank
    if axis:
        order = [axis, *(i for i in range(rank) if i != axis)]
        node = program.call(before, aten.permute.default, node, order)
    sizes = [int(size) for size in node.meta["val"].shape[1:]]
    count = torch.Size(sizes).numel()
    return node if sizes == [count] else program.call(
        before, aten.reshape.default, node, [-1, count]
    )  # fmt: skip


def _back(program: Program, before: fx.Node, y: fx.Node, like: torch.Tensor, axis: int) -> fx.Node:
    """y [T, C] in the layout of `like`, whose tokens lie along `axis`."""
    axis %= like.dim()
    sizes = [int(size) for i, size in enumerate(like.shape) if i != axis]
    node = y
    if len(sizes) != 1:
        node = program.call(before, aten.reshape.default, node, [-1, *sizes])
    if not axis:
        return node
    order = [*range(1, axis + 1), 0, *range(axis + 1, like.dim())]
    return program.call(before, aten.permute.default, node, order)
