"""Weights of 16 bits in the float kernels: compiled code against float64, packing, instructions."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.backends.tvm.kernels.embedding import embedding
from graphwright.backends.tvm.kernels.float_weights import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FloatWeights,
    pack_float,
    pack_routed_float,
)
from graphwright.backends.tvm.kernels.linear_float import linear_float
from graphwright.backends.tvm.kernels.routed_groups import groups_ints, routed_groups
from graphwright.backends.tvm.kernels.routed_linear_float import routed_linear_float
from graphwright.backends.tvm.kernels.standalone import Run, assembly, standalone
from graphwright.backends.tvm.layouts import linear_float_layout, routed_float_layout
from graphwright.backends.tvm.target import cpu_by_name, host_cpu, host_features
from graphwright.ir.activations import activate
from graphwright.ir.op import get_op

NARROW = (BFLOAT16, FLOAT16)
X86 = ("x86-64-v3", "x86-64-v4")
HERE = [name for name in X86 if cpu_by_name(name).features <= host_features()] or [host_cpu().name]


def weight_of(*shape: int, weights: FloatWeights) -> torch.Tensor:
    """Random weights; among float16 ones also subnormal ones."""
    weight = torch.randn(shape) * shape[-1] ** -0.5
    weight.view(-1)[::7] *= 1e-6
    narrow: torch.Tensor = weight.to(weights.dtype)
    return narrow


@cache
def product(
    n: int, k: int, weights: FloatWeights, bias: bool, activation: str, residual: bool,
    max_rows: int, cpu: str,
) -> Run:  # fmt: skip
    kernel = linear_float(
        n, k, weights=weights, x_stride=k + 3, bias=bias, activation=activation,
        residual_stride=n if residual else None, max_rows=max_rows, cpu=cpu_by_name(cpu),
    )  # fmt: skip
    floats = ["float32"] * (1 + bias + residual)
    return standalone(kernel, ["float32", weights.storage, *floats], cpu_by_name(cpu))


def check_product(
    weights: FloatWeights, n: int, k: int, rows: int, threads: int, bias: bool, activation: str,
    residual: bool, max_rows: int, cpu: str,
) -> None:  # fmt: skip
    torch.manual_seed(n * k)
    rows = min(rows, max_rows)
    weight, x = weight_of(n, k, weights=weights), torch.randn(rows, k + 3)
    x[:, k:] = torch.nan  # behind each row, where an odd K ends within a line of weights
    operands = [torch.randn(n)] * bias + [torch.randn(rows, n)] * residual
    want = x[:, :k].double() @ weight.double().T
    want = activate(want + operands[0] if bias else want, activation)
    want = want + operands[-1] if residual else want
    out = np.full(rows * n + 64, np.nan, np.float32)
    run = product(n, k, weights, bias, activation, residual, max_rows, cpu)
    run(rows, threads, x.numpy(), pack_float(weight, weights), *(o.numpy() for o in operands), out)
    assert np.isnan(out[rows * n :]).all(), "written behind the end"
    got = torch.from_numpy(out[: rows * n]).reshape(rows, n)
    scale = max(1.0, float(want.abs().max()))
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=4e-6 * scale)


@settings(max_examples=24, deadline=None, derandomize=True)
@given(
    weights=st.sampled_from(NARROW),
    n=st.integers(1, 70),
    k=st.integers(1, 90),
    rows=st.integers(1, 33),
    threads=st.integers(1, 3),
    bias=st.booleans(),
    activation=st.sampled_from(["none", "silu", "gelu"]),
    residual=st.booleans(),
    max_rows=st.sampled_from([4, 512]),
    cpu=st.sampled_from(HERE),
)
def test_a_product_of_any_size(**case: Any) -> None:
    check_product(**case)


@pytest.mark.parametrize(("k", "weights"), [(131, FLOAT32), (259, BFLOAT16), (259, FLOAT16)])
def test_a_row_that_comes_alone_by_long_tiles(k: int, weights: FloatWeights) -> None:
    """Shares of threads with and without whole strips of tiles, and what is left of them."""
    for rows, threads in ((1, 1), (1, 2), (1, 3), (1, 7), (2, 2)):
        check_product(weights, 150, k, rows, threads, True, "silu", True, 4, host_cpu().name)


@pytest.mark.parametrize("weights", NARROW, ids=lambda each: each.name)
@pytest.mark.parametrize("shared", [True, False])
def test_routed_products(weights: FloatWeights, shared: bool) -> None:
    experts, slots, n, k, cpu = 5, 2, 37, 45, host_cpu()
    weight, bias = weight_of(experts, n, k, weights=weights), torch.randn(experts, n)
    kernel = routed_linear_float(
        n, k, weights=weights, slots=slots, shared=shared, x_stride=k if shared else slots * k,
        bias=True, max_rows=512, cpu=cpu,
    )  # fmt: skip
    dtypes = ["int32", "float32", weights.storage, "float32", "float32"]
    run = standalone(kernel, dtypes, cpu)
    group = routed_groups(experts, slots, experts_stride=slots, cpu=cpu)
    group_run = standalone(group, ["int64", "int32"], cpu)
    for rows in (1, 7, 33):
        ids = torch.randint(0, experts, (rows, slots))
        x = torch.randn(rows, k) if shared else torch.randn(rows, slots, k)
        groups = np.zeros(rows * groups_ints(slots), np.int32)
        group_run(rows, 2, ids.numpy(), groups)
        out = np.zeros((rows, slots, n), np.float32)
        run(rows, 2, groups, x.numpy(), pack_routed_float(weight, weights), bias.numpy(), out)
        want = get_op("routed_linear").reference(x, ids, weight, bias)
        torch.testing.assert_close(torch.from_numpy(out), want, rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("weights", NARROW, ids=lambda each: each.name)
@pytest.mark.parametrize("layout", ["rows", "linear"])
@pytest.mark.parametrize("k", [24, 5, 301])
def test_a_table_is_read_exactly(weights: FloatWeights, layout: str, k: int) -> None:
    cpu, table = host_cpu(), weight_of(37, k, weights=weights)
    ids = torch.tensor([0, 36, 17, 16, 15, 3, 3])
    packed = pack_float(table, weights)
    if layout == "rows":
        packed = table.view(torch.uint16).numpy().view(weights.plain_storage)
    storage = weights.plain_storage if layout == "rows" else weights.storage
    kernel = embedding(k, weights=weights, layout=layout, cpu=cpu)
    out = np.full(len(ids) * k + 64, np.nan, np.float32)
    standalone(kernel, ["int64", storage, "float32"], cpu)(len(ids), 2, ids.numpy(), packed, out)
    assert torch.equal(torch.from_numpy(out[: len(ids) * k]).reshape(-1, k), table[ids].float())
    assert np.isnan(out[len(ids) * k :]).all()


@pytest.mark.parametrize("weights", [FLOAT32, *NARROW], ids=lambda each: each.name)
@pytest.mark.parametrize("shape", [(18, 5), (32, 8), (1, 1)])
def test_a_layout_is_as_large_as_it_says(weights: FloatWeights, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    for layout, tensor in (
        (linear_float_layout(weights), weight),
        (routed_float_layout(weights), torch.stack([weight, weight])),
    ):
        assert layout.pack(tensor).nbytes == layout.size(tuple(tensor.shape))
    n, k = shape
    packed = pack_float(weight, weights).reshape(-1)
    last = packed[weights.tile_size(k) * ((n - 1) // 16) :][: weights.tile_size(k)]
    line = last[weights.line * ((k - 1) // weights.depth) :][: weights.line]
    number, channel = (k - 1) % weights.depth, (n - 1) % 16
    halves = line.view(np.uint16 if weights.dtype.itemsize == 2 else np.float32)
    at = channel * 2 + number if weights is BFLOAT16 else number * 16 + channel
    bits = torch.uint16 if weights.dtype.itemsize == 2 else torch.float32
    assert halves[at] == weight.to(weights.dtype)[-1, -1].view(bits).numpy()


INSTRUCTIONS = {
    ("bf16", "x86-64-v3"): {"vpslld", "vfmadd231ps", "%ymm"},
    ("bf16", "x86-64-v4"): {"vpslld", "vfmadd231ps", "%zmm"},
    ("bf16", "aarch64"): {"shl", "fmla"},
    ("f16", "x86-64-v3"): {"vcvtph2ps", "vfmadd231ps", "%ymm"},
    ("f16", "x86-64-v4"): {"vcvtph2ps", "vfmadd231ps", "%zmm"},
    ("f16", "aarch64"): {"fcvtl", "fmla"},
}


@pytest.mark.parametrize("max_rows", [4, 512])
@pytest.mark.parametrize(("weights", "cpu"), INSTRUCTIONS)
def test_weights_are_converted_in_registers(weights: str, cpu: str, max_rows: int) -> None:
    level = cpu_by_name(cpu)
    kind = {each.name: each for each in NARROW}[weights]
    kernel = linear_float(64, 256, weights=kind, x_stride=256, max_rows=max_rows, cpu=level)
    text = assembly(kernel, ["float32", kind.storage, "float32"], level)
    called = [line for line in text.splitlines() if line.split()[:1] in (["bl"], ["callq"])]
    assert not any("Workspace" in line or "extend" in line for line in called)
    found = {word for line in text.splitlines() for word in line.replace(",", " ").split()}
    found = {each.rstrip("0123456789") if each.startswith("%") else each for each in found}
    found |= {each.split(".")[0] for each in found}
    assert INSTRUCTIONS[weights, cpu] <= found
