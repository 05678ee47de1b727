"""Norms and gated activations that leave int8: the bits of their float32 result, quantized."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import X86
from test_tvm_linear_quantized import check_quantized

from graphwright.backends.tvm.kernels import norms
from graphwright.backends.tvm.kernels.gated_act import gated_act
from graphwright.backends.tvm.kernels.quantize_rows import Int8Rows, group_count, row_size
from graphwright.backends.tvm.kernels.standalone import Run, standalone
from graphwright.backends.tvm.target import cpu_by_name, host_cpu
from graphwright.ir.schemes import quantize_activation

KINDS = ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm", "gated_act")


@cache
def kernels(kind: str, k: int, group: int | None, cpu_name: str) -> tuple[Run, Run]:
    """With a float32 and with an int8 result. Rows of x are k + 3 apart."""
    cpu = cpu_by_name(cpu_name)
    options: dict[str, Any] = {"cpu": cpu}
    if kind == "gated_act":
        options |= {"gate_stride": k + 3, "up_stride": k, "activation": "silu"}
        built = [gated_act(k, **options, int8=each) for each in (None, Int8Rows(k, group))]
    else:
        options |= {"x_stride": k + 3, "weight": True, "eps": 1e-5}
        options |= {"residual_stride": k} if kind.startswith("add") else {}
        options |= {"bias": True} if "layer" in kind else {}
        make = getattr(norms, kind)
        built = [make(k, **options, int8=each) for each in (None, Int8Rows(k, group))]
    assert built[0].name != built[1].name
    floats = ["float32"] * (2 if kind == "gated_act" else len(options) - 2 + kind.startswith("add"))
    return (
        standalone(built[0], [*floats, "float32"], cpu),
        standalone(built[1], [*floats, "int8", "float32"], cpu),
    )


def check(kind: str, k: int, group: int | None, rows: int, threads: int, cpu: str) -> None:
    random = np.random.default_rng(rows * k)
    x = random.normal(size=(rows, k + 3)).astype(np.float32)
    vectors = [random.normal(size=k).astype(np.float32) for _ in range(2)]
    inputs, sums = [x], []
    if kind == "gated_act" or kind.startswith("add"):
        inputs.append(random.normal(size=(rows, k)).astype(np.float32))
    if kind != "gated_act":
        inputs += vectors[: 2 if "layer" in kind else 1]
    if kind.startswith("add"):
        sums = [np.zeros((rows, k), np.float32) for _ in range(2)]
    plain, integer = kernels(kind, k, group, cpu)
    out = np.zeros((rows, k), np.float32)
    groups = group_count(k, group)
    x_q = np.full((rows + 1, row_size(k, group)), 77, np.int8)
    x_scale = np.full((rows + 1, groups), 7, np.float32)
    plain(rows, threads, *inputs, *sums[:1], out)
    integer(rows, threads, *inputs, *sums[1:], x_q, x_scale)
    if sums:
        np.testing.assert_array_equal(sums[1], sums[0])
    want, scale = quantize_activation(torch.from_numpy(out), groups)
    check_quantized(x_q[:rows], x_scale[:rows], want, scale, k)
    assert (x_q[rows] == 77).all() and (x_scale[rows] == 7).all()


@pytest.mark.parametrize("cpu", X86)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_every_level(kind: str, cpu: str) -> None:
    check(kind, 96, 32, 5, 2, cpu)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from([(1, None), (45, None), (96, None), (2048, None), (192, 64), (256, 128)]),
    rows=st.integers(1, 33),
    threads=st.integers(1, 4),
)
def test_any_size(kind: str, shape: tuple[int, int | None], rows: int, threads: int) -> None:
    check(kind, *shape, rows, threads, host_cpu().name)
