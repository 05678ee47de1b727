"""fuse-layer-norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import format_graph
from graphwright.passes.fuse_layer_norm import FuseLayerNorm

aten = torch.ops.aten
GOLDEN = """\
%x : f32[1, T, 12] = input
%w : f32[12] = weight
%b : f32[12] = weight
%layer_norm_1 : f32[1, T, 12] = gw.layer_norm(%x, %w, %b, eps=1e-05)
return %layer_norm_1
"""


def spelled(x: Any, w: Any, b: Any) -> Any:
    centered = aten.sub.Tensor(x, aten.mean.dim(x, [-1], True))
    variance = aten.mean.dim(aten.pow.Tensor_Scalar(centered, 2), [-1], True)
    root = aten.rsqrt.default(aten.add.Tensor(variance, 1e-5))
    return aten.add.Tensor(aten.mul.Tensor(w, aten.mul.Tensor(centered, root)), b)


def whole(x: Any, w: Any, b: Any) -> Any:
    return aten.layer_norm.default(x, [12], w, b, 1e-5, False)


@pytest.mark.parametrize(("function", "rewrites"), ((spelled, 3), (whole, 1)))
def test_fires(function: Any, rewrites: int) -> None:
    program = build_program(function, x=rows(12), w=torch.rand(12), b=torch.rand(12))
    check_pass(program, FuseLayerNorm(), rewrites)
    assert format_graph(program) == GOLDEN


def test_without_parameters() -> None:
    program = build_program(lambda x: aten.layer_norm.default(x, [3]), x=rows(4, 3))
    check_pass(program, FuseLayerNorm(), 1)


def test_leaves_several_axes() -> None:
    program = build_program(lambda x: aten.layer_norm.default(x, [4, 3]), x=rows(4, 3))
    counts, misses = fire(program, FuseLayerNorm())
    assert counts == [0]
    assert misses == ["'layer_norm_default': it normalizes over the last 2 axes, [4, 3]."]


def test_leaves_a_computed_weight() -> None:
    program = build_program(
        lambda x, w: aten.layer_norm.default(x, [4], aten.neg.default(w)),
        x=rows(4),
        w=torch.rand(4),
    )
    counts, misses = fire(program, FuseLayerNorm())
    assert counts == [0]
    assert "the weight 'neg_default' is not one weight for each channel" in misses[0]
