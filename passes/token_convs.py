"""Finding short convolutions along the tokens, and shifts of them. Nothing is rewritten here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.ir import Program, Weight
from graphwright.ir.layout import size_of
from graphwright.passes.token_windows import Cut, NoWindowError, Window, find_cut, trace_window

__all__ = [
    "LONGEST", "TokenConv", "conv_arguments", "find_shift", "find_token_conv",
    "first_number", "is_conv",
]  # fmt: skip

aten = torch.ops.aten
_CONVS = {aten.conv1d.default, aten.conv1d.padding, aten.convolution.default}
_SHIFTS = {aten.slice.Tensor, aten.constant_pad_nd.default, aten.cat.default}
LONGEST = 64
"""Tokens back that a convolution may read: a sequence keeps as many rows for each convolution."""
MOST_GROUPS = 16
"""Groups of several channels that a convolution may have: each becomes a matrix of its own."""


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

    @property
    def depthwise(self) -> bool:
        """Does each output read one channel?"""
        return self.weight.shape[1] == 1


def is_conv(node: fx.Node) -> bool:
    """A one-dimensional convolution."""
    return node.op == "call_function" and node.target in _CONVS


def find_token_conv(program: Program, node: fx.Node) -> TokenConv:
    """The causal convolution that `node` is. Raises NoWindowError with the reason if it is none."""
    given = conv_arguments(node)
    x, kernel = given["input"], program.weight_of(given["weight"])
    name, rank = f"the convolution '{node.name}'", x.meta["val"].dim()
    if kernel is None:
        raise NoWindowError(f"the kernel of {name} is computed: '{given['weight'].name}'")
    if rank - len(kernel.shape) not in (-1, 0) or len(kernel.shape) != 3:
        raise NoWindowError(f"{name} has a kernel {kernel.shape} over an input of rank {rank}")
    if given.get("transposed"):
        raise NoWindowError(f"{name} is transposed")
    stride, dilation = first_number(given["stride"], 1), first_number(given["dilation"], 1)
    groups, taps = int(given["groups"]), kernel.shape[2]
    if stride != 1:
        raise NoWindowError(f"{name} has stride {stride}: it gives no row for each token")
    if groups > MOST_GROUPS and kernel.shape[1] != 1:
        raise NoWindowError(
            f"{name} works in {groups} groups of {kernel.shape[1]} channels; at most "
            f"{MOST_GROUPS} matrices are made of one"
        )
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


def conv_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an aten op by name, with the schema's defaults."""
    assert isinstance(node.target, torch._ops.OpOverload)
    parameters = node.target._schema.arguments
    given = {p.name: p.default_value for p in parameters}
    given.update(zip((p.name for p in parameters), node.args, strict=False))
    return {**given, **node.kwargs}


def first_number(values: Any, default: int) -> int:
    values = values if isinstance(values, (list, tuple)) else [values]
    return int(values[0]) if values else default


def _padded(window: Window, padding: Any, reach: int) -> Window:
    if padding == "same":
        return window.padded(reach // 2, reach - reach // 2)
    both = 0 if padding == "valid" else first_number(padding, 0)
    return window.padded(both, both)
