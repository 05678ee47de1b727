"""recognize-causal-conv: convolutions that feed each other over one padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import check_pass, fire
from test_recognize_causal_conv import WIDTH, conv, cut, depthwise, first, kernel, program_of

from graphwright.ir import format_graph
from graphwright.passes.chained_convs import separate_chained_convs
from graphwright.passes.recognize_causal_conv import RecognizeCausalConv

aten = torch.ops.aten


def in_front(x: Any, count: int) -> Any:
    return aten.constant_pad_nd.default(first(x), [count, 0])


def chain(x: Any, v: Any, a: Any, w: Any, b: Any, *, pad: int = 3, **inner: int) -> Any:
    """Two convolutions over `pad` places in front: of 2 taps depthwise, and of 3 in 2 groups."""
    y = conv(in_front(x, pad), v, a, padding=0, **inner)
    return first(conv(y, w, b, padding=0, groups=2))


WEIGHTS = {
    "v": depthwise(2), "a": kernel(WIDTH), "w": kernel(4, 3, 3), "b": kernel(4),
}  # fmt: skip


def test_each_of_two_convolutions_over_one_padding_gets_its_own() -> None:
    program = program_of(lambda x, t, v, a, w, b: chain(x, v, a, w, b), **WEIGHTS)
    check_pass(program, RecognizeCausalConv(), 3)
    assert (
        "".join(
            line
            for line in format_graph(program).splitlines(keepends=True)
            if not line.endswith(("input\n", "weight\n"))
        )
        == """\
%reshape_1 : f32[T, 6] = aten.reshape(%x, [-1, 6])
%conv_along_tokens_1 : f32[T, 6] = gw.conv_along_tokens(%reshape_1, %conv1d_default_2_kernel, None)
%conv_along_tokens_2 : f32[T, 18] = gw.conv_along_tokens(%conv_along_tokens_1, \
%conv1d_default_3_taps, None)
%slice_1 : f32[T, 9] = aten.slice.Tensor(%conv_along_tokens_2, 1, 0, 9)
%linear_1 : f32[T, 2] = aten.linear(%slice_1, %conv1d_default_3_matrix, %conv1d_default_3_bias)
%slice_2 : f32[T, 9] = aten.slice.Tensor(%conv_along_tokens_2, 1, 9, 18)
%linear_2 : f32[T, 2] = aten.linear(%slice_2, %conv1d_default_3_matrix_1, %conv1d_default_3_bias_1)
%cat_1 : f32[T, 4] = aten.cat([%linear_1, %linear_2], 1)
%reshape_2 : f32[1, T, 4] = aten.reshape(%cat_1, [1, -1, 4])
return %reshape_2
"""
    )


CHAINS: dict[str, Callable[..., Any]] = {
    "no bias outside": lambda x, t, v, a, w, b: chain(x, v, a, w, None),
    "no bias inside": lambda x, t, v, a, w, b: chain(x, v, None, w, b),
    "no bias": lambda x, t, v, a, w, b: chain(x, v, None, w, None),
    "with gaps": lambda x, t, v, a, w, b: chain(x, v, a, w, b, pad=4, dilation=2),
}


@pytest.mark.parametrize("name", CHAINS)
def test_other_chains(name: str) -> None:
    check_pass(program_of(CHAINS[name], **WEIGHTS), RecognizeCausalConv(), 3)


def rectified(x: Any, t: Any, v: Any, a: Any, w: Any, b: Any) -> Any:
    y = aten.relu.default(conv(in_front(x, 3), v, a, padding=0))
    return first(conv(y, w, b, padding=0, groups=2))


def seen_twice(x: Any, t: Any, v: Any, a: Any, w: Any, b: Any) -> Any:
    y = conv(in_front(x, 3), v, a, padding=0)
    z = first(conv(y, w, b, padding=0, groups=2))
    return aten.add.Tensor(z, aten.sum.dim_IntList(y, [1, 2], True))


def padded_again(x: Any, t: Any, v: Any, a: Any, w: Any, b: Any) -> Any:
    y = conv(in_front(x, 2), v, a, padding=0)
    return first(cut(conv(y, w, b, padding=1, groups=2), t))


def behind(x: Any, t: Any, v: Any, a: Any, w: Any, b: Any) -> Any:
    y = conv(aten.constant_pad_nd.default(first(x), [2, 1]), v, a, padding=0)
    return first(conv(y, w, b, padding=0, groups=2))


@pytest.mark.parametrize("function", [rectified, seen_twice, padded_again, behind])
def test_near_misses_are_left(function: Callable[..., Any]) -> None:
    program = program_of(function, **WEIGHTS)
    before = format_graph(program)
    assert separate_chained_convs(program) == 0 and format_graph(program) == before
    _, misses = fire(program, RecognizeCausalConv())
    assert any("uses all T + " in miss for miss in misses), misses
