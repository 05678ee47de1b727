"""Generated Triton source for regions, in the interpreter, against torch running the same graph."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from region_cases import NUMBERS, REDUCTIONS, SHAPES, TRACED, positions, rows, trace
from torch import fx

from graphwright.ir.errors import BackendError
from graphwright.ir.tolerance import check_close

pytest.importorskip("triton")

from graphwright.backends.triton.interpret import interpret
from graphwright.backends.triton.regions.region import Region, region

aten = torch.ops.aten


def stored(x: torch.Tensor) -> torch.Tensor:
    return (x.to(torch.int8) if x.dtype is torch.bool else x).contiguous()


def name_of(x: torch.Tensor) -> str:
    return str(stored(x).dtype).removeprefix("torch.")


def build(module: fx.GraphModule, inputs: list[Any], gap: int = 3) -> Region:
    """The kernel for inputs with gaps between their rows."""
    sample = [e if isinstance(e, torch.Tensor) else e(TRACED) for e in inputs]
    strides = []
    for given, each in zip(inputs, sample, strict=True):
        if isinstance(given, torch.Tensor):
            strides.append(0)
            continue
        axis = each.shape.index(TRACED)
        strides.append(math.prod(each.shape[axis + 1 :]) + gap * each.is_floating_point())
    results = module(*sample)
    wants = list(results) if isinstance(results, tuple) else [results]
    return region(module, strides, [name_of(each) for each in (*sample, *wants)], "T")


def check_module(module: fx.GraphModule, *inputs: Any, kind: str = "reassociating") -> None:
    """Runs the kernel of `module` and `module` itself on few and on many rows."""
    torch.manual_seed(0)
    made = build(module, list(inputs))
    for count in (1, 9):
        sample = [e if isinstance(e, torch.Tensor) else e(count) for e in inputs]
        results = module(*sample)
        wants = list(results) if isinstance(results, tuple) else [results]
        memory = [
            stored(each) if isinstance(given, torch.Tensor) else spread(each, count)
            for given, each in zip(inputs, sample, strict=True)
        ]
        outs = [torch.full((want.numel() + 40,), 7, dtype=stored(want).dtype) for want in wants]
        batch = torch.tensor([count, 1, 1, 0, 0, 0, 0, 0], dtype=torch.int32)
        interpret(made.kernel, {"T": count + 2, "R": 1}, batch, *memory, *outs)
        for out, want in zip(outs, wants, strict=True):
            assert (out[want.numel() :] == 7).all(), made.source
            got = out[: want.numel()].to(want.dtype).reshape(want.shape)
            check_close(got, want, kind)


def spread(x: torch.Tensor, count: int, gap: int = 3) -> torch.Tensor:
    """The rows of x with NaN between those of floats."""
    flat = stored(x).reshape(count, -1)
    if not flat.is_floating_point():
        return flat
    wide = torch.full((count, flat.shape[1] + gap), math.nan, dtype=flat.dtype)
    wide[:, : flat.shape[1]] = flat
    return wide


@pytest.mark.parametrize("name", [*SHAPES, *NUMBERS, *REDUCTIONS])
def test_regions(name: str) -> None:
    function, *inputs = {**SHAPES, **NUMBERS, **REDUCTIONS}[name]
    check_module(trace(function, list(inputs)), *inputs)


def test_large_angles_are_reduced() -> None:
    inputs = [positions(high=1_000_000)]
    check_module(trace(lambda p: (p.float().cos(), p.float().sin()), inputs), *inputs)


def test_nan_and_infinity() -> None:
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 88.0])
    function = lambda x, w: (  # noqa: E731
        w.exp() + 0 * x, w.clamp(-1, 1) + 0 * x, torch.maximum(w, x), w.expm1() + 0 * x,
        torch.logical_xor(w.isnan(), x > 0), (w > 0) == (x > 0), w.isinf() & (x == x),
    )  # fmt: skip
    check_module(trace(function, [rows(8), special]), rows(8), special)


def test_pads() -> None:
    """An op that tracing takes apart: written over a stand-in of the same shape."""
    module = trace(lambda x: torch.cat((x[:, :2], x, x[:, :3]), -1) * 2, [rows(11)])
    (cat,) = (node for node in module.graph.nodes if node.target is aten.cat.default)
    cat.target, cat.args = aten.constant_pad_nd.default, (next(iter(module.graph.nodes)), [2, 3], 1)
    module.graph.eliminate_dead_code()
    module.recompile()
    check_module(module, rows(11), kind="exact")


def test_a_narrow_type_is_computed_in_float32_and_rounded_once() -> None:
    module = trace(lambda x: (x * 3.0).exp() - 1.0, [rows(24)])
    made = region(module, [24], ["float16", "float16"], "T")
    x, out = torch.randn(5, 24).half(), torch.zeros(5, 24, dtype=torch.float16)
    batch = torch.tensor([5, 1, 1, 0, 0, 0, 0, 0], dtype=torch.int32)
    interpret(made.kernel, {"T": 8, "R": 1}, batch, x, out)
    assert torch.equal(out, ((x.float() * 3.0).exp() - 1.0).half())


def test_the_source_is_short_readable_and_the_same_every_time() -> None:
    inputs = [rows(40)]
    first, second = (build(trace(lambda x: torch.tanh(x / 30.0) * 30.0, inputs), inputs)
                     for _ in range(2))  # fmt: skip
    assert first.source == second.source
    assert first.kernel.name == second.kernel.name
    assert first.source.split("\n\n\n")[-1] == (
        """@triton.jit
def region(batch, in0, out0, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    rows = tl.load(batch + ROWS)
    if row >= rows:
        return
    first = tl.program_id(1) * BLOCK
    column = first + tl.arange(0, BLOCK)
    v0 = tl.load(in0 + ((row * 43) + column), mask=(column < 40), other=0).to(tl.float32)
    v1 = (v0 / 30.0)
    v2 = tanh(v1)
    v3 = (v2 * 30.0)
    tl.store(out0 + row * 40 + column, (v3).to(out0.dtype.element_ty), mask=(column < 40))
"""
    )


def test_what_cannot_be_computed_is_named() -> None:
    module = trace(lambda x: torch.special.bessel_j0(x), [rows(4)])
    with pytest.raises(BackendError, match=r"special_bessel_j0.*is not an op that regions know"):
        region(module, [4], ["float32", "float32"], "T")
    module = trace(lambda x: x.reshape(-1, 4).sum(0, keepdim=True).expand(x.shape[0], 4), [rows(4)])
    with pytest.raises(BackendError, match="reduces the rows"):
        region(module, [4], ["float32", "float32"], "T")
