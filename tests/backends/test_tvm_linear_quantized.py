"""Quantized products and the quantization of their inputs: compiled code against torch."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import HERE, ROWS, X86, Case, assert_close, instructions, run_into, runnable

from graphwright.backends.tvm.kernels.linear_quantized import linear_quantized, weight_pointers
from graphwright.backends.tvm.kernels.linear_w4 import pack_w4, pack_w4_rows
from graphwright.backends.tvm.kernels.linear_w8 import pack_w8
from graphwright.backends.tvm.kernels.matmul import pack_groups
from graphwright.backends.tvm.kernels.quantize_rows import (
    group_count,
    padded,
    quantize_rows,
    row_size,
)
from graphwright.backends.tvm.kernels.standalone import Run, assembly, build, standalone
from graphwright.backends.tvm.layouts import linear_quantized_layouts
from graphwright.backends.tvm.target import cpu_by_name, host_cpu
from graphwright.ir.activations import ACTIVATIONS
from graphwright.ir.errors import BackendError
from graphwright.ir.schemes import Scheme, quantize_activation, quantize_weight

PAIRS = {"vpmaddubsw", "vpaddw", "vpmaddwd"}
SCHEMES = [f"w8{group}" for group in ("", "g32", "g64", "g128")]
SCHEMES += [f"w4g{group}{zero}" for group in (32, 64, 128) for zero in ("", "z")]
EPILOGUE: dict[str, Any] = {"bias": True, "activation": "silu", "residual": True}


def dtypes_of(scheme: str) -> list[str]:
    return ["int8", "float32", *(dtype for _, dtype in weight_pointers(Scheme.parse(scheme)))]


@cache
def kernels(case: Case) -> tuple[Run, Run]:
    cpu, scheme = runnable(case.cpu), Scheme.parse(case.scheme)
    stride = case.k + case.padding
    quantize = quantize_rows(case.k, x_stride=stride, group=scheme.group, cpu=cpu)
    product = linear_quantized(case.n, case.k, scheme, **case.options)  # type: ignore[arg-type]
    return (
        standalone(quantize, ["float32", "int8", "float32"], cpu),
        standalone(product, [*dtypes_of(case.scheme), *case.epilogue_dtypes], cpu),
    )


def check(case: Case, extreme: bool = False) -> None:
    torch.manual_seed(0)
    scheme = Scheme.parse(case.scheme)
    weight = torch.randn(case.n, case.k) * case.k**-0.5
    x = torch.randn(case.rows, case.k + case.padding)
    if extreme:  # every product 127 * 127, in pairs of every sign
        weight = torch.tensor([1.0, -1.0, 1.0, 1.0]).repeat(case.k // 4).repeat(case.n, 1)
        x = torch.tensor([1.0, -1.0, -1.0, -1.0]).repeat(case.k // 4).repeat(case.rows, 1)
        weight[::2] = 1.0
        x[::2] = -1.0
    parts = quantize_weight(weight, case.scheme)
    q, scale, *zero = parts
    groups = group_count(case.k, scheme.group)
    want_q, want_scale = quantize_activation(x[:, : case.k], groups)

    quantize, run = kernels(replace(case, rows=1, threads=1))
    x_q = np.full((case.rows, row_size(case.k, scheme.group)), 77, np.int8)
    x_scale = np.zeros((case.rows, groups), np.float32)
    quantize(case.rows, case.threads, x.numpy(), x_q, x_scale)
    check_quantized(x_q, x_scale, want_q, want_scale, case.k)

    dots = torch.einsum(
        "rgk,ngk->rng",
        want_q.reshape(case.rows, groups, -1).double(),
        q.reshape(case.n, groups, -1).double() - (zero[0].double()[..., None] if zero else 0),
    )
    exact = (dots * want_scale[:, None].double() * scale.double()).sum(-1).numpy()
    operands, want = case.finish(exact)
    memory = np.full(case.rows * case.n + 64, np.nan, np.float32)
    layouts = linear_quantized_layouts(scheme)
    packed = [layout.pack(part) for layout, part in zip(layouts, parts, strict=True)]
    for layout, part, array in zip(layouts, parts, packed, strict=True):
        assert (array.nbytes, str(array.dtype)) == (layout.size(part.shape), layout.dtype)
    run_into(run, case, [x_q, x_scale, *packed, *operands], memory)
    assert_close(memory[: want.size].reshape(want.shape), want)


def check_quantized(
    x_q: np.ndarray, x_scale: np.ndarray, want: torch.Tensor, scale: torch.Tensor, k: int
) -> None:
    """Bit for bit; zeros behind the values, then the sums of the groups."""
    groups = scale.shape[1]
    np.testing.assert_array_equal(x_q[:, :k], want.numpy())
    np.testing.assert_array_equal(x_scale, scale.numpy())
    assert not x_q[:, k : padded(k)].any()
    sums = np.ascontiguousarray(x_q[:, padded(k) : padded(k) + 4 * groups]).view(np.int32)
    np.testing.assert_array_equal(sums, want.reshape(len(want), groups, -1).int().sum(-1).numpy())


@pytest.mark.parametrize("cpu", X86)
@pytest.mark.parametrize(
    ("k", "scheme"), [(45, "w8"), (96, "w8g32"), (96, "w4g32"), (128, "w4g64z"), (256, "w4g128")]
)
def test_any_rows_and_threads(cpu: str, k: int, scheme: str) -> None:
    case = Case(37, k, cpu, padding=3, scheme=scheme, **EPILOGUE)
    for rows in ROWS:
        for threads in (1, 2, 4):
            check(replace(case, rows=rows, threads=threads))


@pytest.mark.parametrize(
    ("k", "scheme"), [(512, "w8"), (544, "w8g32"), (1024, "w4g32"), (1152, "w4g128z")]
)
def test_a_row_that_comes_alone_by_long_tiles(k: int, scheme: str) -> None:
    """Shares of threads with and without whole strips of tiles, and what is left of them."""
    case = Case(150, k, host_cpu().name, max_rows=4, padding=3, scheme=scheme, **EPILOGUE)
    for rows, threads in ((1, 1), (1, 2), (1, 3), (1, 7), (2, 2)):
        check(replace(case, rows=rows, threads=threads))


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    st.builds(
        Case,
        n=st.integers(1, 100),
        k=st.sampled_from([1, 3, 17, 32, 96, 128, 130, 160, 256, 384]),
        max_rows=st.sampled_from([4, 512]),
        cpu=st.sampled_from(HERE),
        rows=st.integers(1, 40),
        threads=st.integers(1, 4),
        padding=st.integers(0, 5),
        bias=st.booleans(),
        activation=st.sampled_from([None, *ACTIVATIONS]),
        residual=st.booleans(),
        scheme=st.sampled_from(SCHEMES),
    )
)
def test_any_size(case: Case) -> None:
    fitting = Scheme.parse(case.scheme).for_inputs(case.k)
    check(replace(case, scheme=str(fitting), rows=min(case.rows, case.max_rows)))


@pytest.mark.parametrize("cpu", X86)
@pytest.mark.parametrize("rows", [4, 20])
@pytest.mark.parametrize("scheme", ["w8", "w4g32", "w4g128", "w4g128z"])
def test_nothing_saturates(cpu: str, rows: int, scheme: str) -> None:
    check(Case(16, 256, cpu, rows=rows, scheme=scheme), extreme=True)


@pytest.mark.parametrize("group", [None, 64])
def test_quantize_rows_at_the_edges(group: int | None) -> None:
    cpu, k = host_cpu(), 192
    x = torch.randn(6, k)
    x[1] = 0
    x[2] *= 1e-42  # the scale is subnormal
    x[3] *= 1e37
    x[4] = torch.arange(k) % 255 - 127 + 0.5  # ties
    x[4, ::64] = 127
    x[5, 7] = math.nan
    groups = group_count(k, group)
    x_q = np.zeros((6, row_size(k, group)), np.int8)
    x_scale = np.zeros((6, groups), np.float32)
    kernel = quantize_rows(k, x_stride=k, group=group, cpu=cpu)
    standalone(kernel, ["float32", "int8", "float32"], cpu)(6, 2, x.numpy(), x_q, x_scale)
    want, scale = quantize_activation(x, groups)
    check_quantized(x_q[:5], x_scale[:5], want[:5], scale[:5], k)
    assert np.isnan(x_scale[5, 0]), "a NaN must not disappear"


def test_quantize_rows_refuses_groups_that_do_not_divide() -> None:
    with pytest.raises(
        BackendError, match="100 input channels cannot be quantized in groups of 32"
    ):
        quantize_rows(100, x_stride=100, group=32, cpu=cpu_by_name("x86-64-v3"))


def test_packed_layouts() -> None:
    q = np.arange(18 * 70, dtype=np.int64).reshape(18, 70).astype(np.int8)
    packed = pack_w8(q)
    assert packed.shape == (2, 32, 16, 4)
    assert packed[1, 17, 1, 1] == q[17, 69] and not packed[:, 18:].any()
    assert not packed[1, :, 2:].any()
    values = np.arange(18, dtype=np.float32)[:, None]
    assert pack_groups(values).shape == (2, 1, 16) and pack_groups(values)[1, 0, 1] == 17

    q = (np.arange(18 * 70).reshape(18, 70) * 7 % 16 - 8).astype(np.int16)
    packed = pack_w4(q, False)
    assert packed.shape == (2, 2, 8, 16, 4)
    assert packed[1, 0, 2, 1, 3] == (q[17, 11] + 8) | (q[17, 43] + 8) << 4
    rows = pack_w4_rows(q + 8, True)
    assert rows.shape == (18, 2, 32) and rows[3, 1, 5] == q[3, 69] + 8
    assert rows[17, 0, 30] == (q[17, 30] + 8) | (q[17, 62] + 8) << 4


@pytest.mark.parametrize(
    ("cpu", "scheme", "max_rows", "wanted", "unwanted"),
    [
        (
            "x86-64-v3",
            "w8",
            4,
            {"vpsignb", "vpmaddubsw", "vpmaddwd", "prefetcht0"},
            {"%zmm", "vpcmpgtb"},
        ),
        (
            "x86-64-v3",
            "w8",
            512,
            {"vpsignb", "vpmaddubsw", "vpmaddwd", "vpcmpgtb", "vpxor"},
            {"%zmm"},
        ),
        ("x86-64-v4", "w8", 512, {"vpsignb", "vpmaddubsw", "prefetcht0"}, {"vpdpbusd"}),
        ("x86-64-v4-vnni", "w8", 4, {"vpdpbusd", "%zmm", "prefetcht0"}, {"vpmaddubsw"}),
        ("x86-64-v4-vnni", "w8", 512, {"vpdpbusd", "%zmm", "prefetcht1"}, {"vpmaddubsw"}),
        ("x86-64-v3", "w4g128", 4, {*PAIRS, "prefetcht0"}, {"%zmm", "vpsignb"}),
        ("x86-64-v3", "w4g32z", 512, {*PAIRS, "vcvtph2ps"}, {"%zmm", "vpsignb"}),
        ("x86-64-v4-vnni", "w4g32", 512, {"vpdpbusd", "%zmm"}, {"vpmaddubsw"}),
    ],
)
def test_integer_instructions(
    cpu: str, scheme: str, max_rows: int, wanted: set[str], unwanted: set[str]
) -> None:
    level = cpu_by_name(cpu)
    kernel = linear_quantized(64, 256, Scheme.parse(scheme), max_rows=max_rows, cpu=level)
    found = instructions(kernel, [*dtypes_of(scheme), "float32"], level)
    assert wanted <= found and not unwanted & found


@pytest.mark.parametrize("scheme", ["w4g32", "w4g128z"])
def test_inner_loops_do_not_spill(scheme: str) -> None:
    level = cpu_by_name("x86-64-v3")
    kernel = linear_quantized(64, 256, Scheme.parse(scheme), max_rows=512, cpu=level)
    loops = inner_loops(assembly(kernel, [*dtypes_of(scheme), "float32"], level))
    multiplying = [loop for loop in loops if "vpmaddubsw" in loop]
    assert len(multiplying) >= 2 * 5, "a loop for low and one for high nibbles, for any rows"
    for loop in multiplying:
        assert not re.search(r"vmov\w+\s+%ymm\d+, \S*\(%rsp", loop), loop


def inner_loops(text: str) -> list[str]:
    """What jumps back to its own beginning, without any label inside but those of debuggers."""
    text = re.sub(r"^\.Ltmp\d+:\n", "", text, flags=re.MULTILINE)
    blocks = re.split(r"^(\.L\w+):", text, flags=re.MULTILINE)[1:]
    found = []
    for label, body in zip(blocks[::2], blocks[1::2], strict=True):
        head, jump, _ = re.split(rf"(\tj\w+\t{re.escape(label)}\n)|\Z", body, maxsplit=1)
        found += [head] if jump else []
    return found


def test_every_kernel_builds_for_aarch64() -> None:
    cpu = cpu_by_name("aarch64")
    for max_rows in (8, 512):
        for scheme in ("w8g32", "w4g64z"):
            kernel = linear_quantized(20, 64, Scheme.parse(scheme), max_rows=max_rows, cpu=cpu)
            build(kernel, [*dtypes_of(scheme), "float32"], cpu)
    build(quantize_rows(50, x_stride=50, cpu=cpu), ["float32", "int8", "float32"], cpu)
