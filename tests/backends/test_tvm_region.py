"""Generated code for regions against torch running the same graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from region_cases import NUMBERS, REDUCTIONS, SHAPES, TRACED, positions, rows, trace
from torch import fx

from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.region import region
from graphwright.backends.tvm.kernels.standalone import assembly, standalone
from graphwright.backends.tvm.target import host_cpu
from graphwright.ir.errors import BackendError
from graphwright.ir.tolerance import check_close

CPU = host_cpu()
aten = torch.ops.aten


def stored(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.to(torch.int8).numpy() if x.dtype is torch.bool else x.numpy())


def check(
    function: Callable[..., Any], *inputs: Any, gap: int = 3, kind: str = "reassociating"
) -> None:
    torch.manual_seed(0)
    check_module(trace(function, list(inputs)), *inputs, gap=gap, kind=kind)


def check_module(module: fx.GraphModule, *inputs: Any, gap: int = 3, kind: str) -> None:
    """Runs the kernel of `module` and `module` itself on 1, 29 and 70 rows."""
    activation = [not isinstance(each, torch.Tensor) for each in inputs]
    counts = (1, TRACED, 70)
    samples = {n: [e if isinstance(e, torch.Tensor) else e(n) for e in inputs] for n in counts}
    strides = []
    for each, active in zip(samples[TRACED], activation, strict=True):
        axis = each.shape.index(TRACED) if active else 0
        padded = gap if each.is_floating_point() else 0
        strides.append(math.prod(each.shape[axis + 1 :]) + padded if active else 0)
    kernel, run = region(module, tuple(strides), cpu=CPU), None
    for count, sample in samples.items():
        results = module(*sample)
        wants = list(results) if isinstance(results, tuple) else [results]
        arrays = [
            strided(each, count, stride) if active else stored(each)
            for each, active, stride in zip(sample, activation, strides, strict=True)
        ]
        outs = [np.full(want.numel() + 32, 7, stored(want).dtype) for want in wants]
        run = run or standalone(kernel, [str(each.dtype) for each in (*arrays, *outs)], CPU)
        for threads in (1, 3) if count == TRACED else (2,):
            for out in outs:
                out[:] = 7
            run(count, threads, *arrays, *outs)
            for out, want in zip(outs, wants, strict=True):
                assert (out[want.numel() :] == 7).all()
                got = torch.from_numpy(out[: want.numel()]).to(want.dtype).reshape(want.shape)
                check_close(got, want, kind)


def strided(x: torch.Tensor, count: int, stride: int) -> np.ndarray:
    """Rows `stride` elements apart, with NaN or 0 between."""
    flat = stored(x).reshape(count, -1)
    memory = np.full((count, stride), np.nan if flat.dtype.kind == "f" else 0, flat.dtype)
    memory[:, : flat.shape[1]] = flat
    return memory


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    check(*SHAPES[name])


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    check(*NUMBERS[name])


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str) -> None:
    check(*REDUCTIONS[name])


def test_pads_and_scalar_choices() -> None:
    """Ops that tracing takes apart: written over stand-ins of the same shape."""
    module = trace(lambda x: torch.cat((x[:, :2], x, x[:, :3]), -1) * 2, [rows(11)])
    (cat,) = (node for node in module.graph.nodes if node.target is aten.cat.default)
    x = next(iter(module.graph.nodes))
    cat.target, cat.args = aten.constant_pad_nd.default, (x, [2, 3], 1.5)
    check_module(rebuilt(module), rows(11), kind="exact")
    choices = {"ScalarOther": ("x", 2.5), "ScalarSelf": (2.5, "x"), "Scalar": (1.0, 2.5)}
    for overload, sides in choices.items():
        module = trace(lambda x: torch.where(x > 0, x, x) * 2, [rows(11)])
        (where,) = (node for node in module.graph.nodes if node.target is aten.where.self)
        x = next(iter(module.graph.nodes))
        where.target = getattr(aten.where, overload)
        where.args = (where.args[0], *(x if side == "x" else side for side in sides))
        check_module(rebuilt(module), rows(11), kind="exact")


def rebuilt(module: fx.GraphModule) -> fx.GraphModule:
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def test_large_angles_are_reduced_exactly() -> None:
    check(lambda p: (p.float().cos(), p.float().sin()), positions(high=1_000_000))


def test_nan_and_infinity() -> None:
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 88.0])
    check(
        lambda x, w: (
            w.exp() + 0 * x,
            w.clamp(-1, 1) + 0 * x,
            torch.maximum(w, x),
            w.tanh() + 0 * x,
            w.expm1() + 0 * x,
            torch.logical_xor(w.isnan(), x > 0),
            (w > 0) == (x > 0),
            w.isinf() & (x == x),
        ),
        rows(8),
        special,
    )


def test_an_unknown_op_is_named() -> None:
    module = trace(lambda x: torch.special.bessel_j0(x), [rows(4)])
    with pytest.raises(BackendError, match=r"special_bessel_j0.*is not an op that regions know"):
        region(module, (4,), cpu=CPU)


def test_taking_rows_apart_is_refused() -> None:
    module = trace(lambda x: x.reshape(-1, 4).sum(0, keepdim=True).expand(x.shape[0], 4), [rows(4)])
    with pytest.raises(BackendError, match="reduces the rows"):
        region(module, (4,), cpu=CPU)


def test_inputs_must_have_the_same_rows() -> None:
    module = trace(lambda x, y: (x * 2, y * 2), [rows(4), rows(4)])
    x, y, *_ = module.graph.nodes
    y.meta["val"] = x.meta["val"].new_empty((x.meta["val"].shape[0] * 2, 4))
    with pytest.raises(BackendError, match="different numbers of rows"):
        region(module, (4, 4), cpu=CPU)


def test_equal_graphs_have_equal_names_and_code() -> None:
    def make(scale: float, stride: int) -> Kernel:
        module = trace(lambda x: (x.reshape(-1, 4, 6) * scale).tanh(), [rows(24)])
        return region(module, (stride,), cpu=CPU)

    assert make(2.0, 24).name == make(2.0, 24).name
    assert str(make(2.0, 24).func) == str(make(2.0, 24).func)
    assert len({make(2.0, 24).name, make(3.0, 24).name, make(2.0, 25).name}) == 3


@pytest.mark.parametrize("name", ["rope with heads in front", "partial rope"])
def test_rope_is_vectorized(name: str) -> None:
    function, *inputs = SHAPES[name]
    kernel = region(trace(function, list(inputs)), (67, 16, 16), cpu=CPU)
    text = assembly(kernel, ["float32"] * 4, CPU)
    packed = [line for line in text.splitlines() if "fma" in line or "mulps" in line]
    assert any("mm" in line and "ps" in line for line in packed), "no packed arithmetic"
