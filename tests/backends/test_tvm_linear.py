"""Float matrix kernels and vector math: compiled code against numpy and torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import HERE, ROWS, X86, Case, assert_close, instructions, run_into, runnable
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels import vector
from graphwright.backends.tvm.kernels.float_weights import BFLOAT16, FLOAT32, pack_float
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition
from graphwright.backends.tvm.kernels.linear_float import linear_float
from graphwright.backends.tvm.kernels.standalone import Run, standalone
from graphwright.backends.tvm.target import cpu_by_name, host_cpu, host_features
from graphwright.ir.activations import ACTIVATIONS
from graphwright.ir.errors import BackendError


@cache
def f32_kernel(case: Case) -> Run:
    kernel = linear_float(case.n, case.k, x_stride=case.k + case.padding, **case.options)  # type: ignore[arg-type]
    return standalone(kernel, ["float32", "float32", *case.epilogue_dtypes], runnable(case.cpu))


def check_f32(case: Case) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((case.n, case.k), np.float32) * np.float32(case.k**-0.5)
    x = random.standard_normal((case.rows, case.k + case.padding), np.float32)
    exact = x[:, : case.k].astype(np.float64) @ weight.T.astype(np.float64)
    operands, want = case.finish(exact)
    run = f32_kernel(replace(case, rows=1, threads=1))
    memory = np.full(case.rows * case.n + 64, np.nan, np.float32)
    run_into(run, case, [x, pack_float(torch.from_numpy(weight), FLOAT32), *operands], memory)
    assert_close(memory[: want.size].reshape(want.shape), want)


@pytest.mark.parametrize("cpu", X86[:2])
def test_linear_f32_for_any_rows_and_threads(cpu: str) -> None:
    case = Case(37, 45, cpu, padding=3, bias=True, activation="silu", residual=True)
    for rows in ROWS:
        for threads in (1, 2, 3, 4):
            check_f32(replace(case, rows=rows, threads=threads))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.builds(
        Case,
        n=st.integers(1, 100),
        k=st.integers(1, 300),
        max_rows=st.sampled_from([4, 512]),
        cpu=st.sampled_from(HERE),
        rows=st.integers(1, 40),
        threads=st.integers(1, 4),
        padding=st.integers(0, 5),
        bias=st.booleans(),
        activation=st.sampled_from([None, *ACTIVATIONS]),
        residual=st.booleans(),
    )
)
def test_linear_f32_of_any_size(case: Case) -> None:
    check_f32(replace(case, rows=min(case.rows, case.max_rows)))


@pytest.mark.parametrize("rows", [4, 20])
def test_a_residual_may_be_updated_in_place(rows: int) -> None:
    random = np.random.default_rng(0)
    case = Case(40, 64, host_cpu().name, rows=rows, threads=2, residual=True)
    weight = random.standard_normal((case.n, case.k), np.float32) * np.float32(case.k**-0.5)
    x = random.standard_normal((case.rows, case.k), np.float32)
    (residual,), want = case.finish(x.astype(np.float64) @ weight.T.astype(np.float64))
    packed = pack_float(torch.from_numpy(weight), FLOAT32)
    f32_kernel(replace(case, rows=1, threads=1))(
        case.rows, case.threads, x, packed, residual, residual
    )
    assert_close(residual, want)


def test_packed_layouts() -> None:
    weight = np.arange(18 * 5, dtype=np.float32).reshape(18, 5)
    packed = pack_float(torch.from_numpy(weight), FLOAT32)
    assert packed.shape == (2, 5, 16)
    assert packed[1, 4, 1] == weight[17, 4] and not packed[1, :, 2:].any()


@pytest.mark.parametrize(
    ("cpu", "wanted"),
    [
        ("x86-64-v3", {"vfmadd231ps", "%ymm", "prefetcht0"}),
        ("x86-64-v4", {"vfmadd231ps", "%zmm", "prefetcht0"}),
        ("aarch64", {"fmla", "prfm"}),
    ],
)
def test_linear_f32_uses_fused_multiplications(cpu: str, wanted: set[str]) -> None:
    level = cpu_by_name(cpu)
    kernel = linear_float(64, 256, x_stride=256, activation="gelu", max_rows=8, cpu=level)
    assert wanted <= instructions(kernel, ["float32"] * 3, level)


def test_names_tell_kernels_apart() -> None:
    cpu, other = cpu_by_name("x86-64-v3"), cpu_by_name("x86-64-v4")
    base: dict[str, object] = {"x_stride": 64, "max_rows": 4, "cpu": cpu}
    variants: list[dict[str, object]] = [
        {},
        {"x_stride": 65},
        {"max_rows": 512},
        {"bias": True},
        {"activation": "relu"},
        {"weights": BFLOAT16},
        {"residual_stride": 16},
        {"cpu": other},
    ]
    names = [linear_float(16, 64, **{**base, **each}).name for each in variants]  # type: ignore[arg-type]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    assert (
        linear_float(16, 64, x_stride=64, max_rows=1, activation="none", cpu=cpu).name == names[0]
    )


def elementwise(function: Callable[[Expr, int], Expr], lanes: int) -> Kernel:
    def body(thread: Expr, threads: Expr, rows: Expr, x: Expr, y: Expr) -> None:
        first, last = partition(rows, thread, threads)
        with T.serial(first, last) as i:
            at = vector.span(i * lanes, lanes)
            T.buffer_store(y, function(x[at], lanes), [at])

    return define("elementwise", [("x", "float32"), ("y", "float32")], body)


EXACT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "vexp": torch.exp,
    "vtanh": torch.tanh,
    "verf": torch.erf,
    **{f"v{name}": function for name, function in ACTIVATIONS.items() if name != "none"},
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("lanes", [1, 8, 16])
def test_vector_functions(name: str, lanes: int) -> None:
    cpu = runnable("x86-64-v4" if lanes == 16 else "x86-64-v3")
    torch.manual_seed(0)
    x = torch.cat([torch.randn(20000) * 3, torch.empty(20000).uniform_(-86.9, 88.7)])
    y = np.zeros(len(x), np.float32)
    kernel = elementwise(getattr(vector, name), lanes)
    run = standalone(kernel, ["float32", "float32"], cpu)
    run(len(x) // lanes, 2, x.numpy(), y)
    want = EXACT[name](x.double()).numpy()
    relative = {"vexp": 1.2e-7, "vsigmoid": 3e-7, "vtanh": 4e-7, "verf": 4e-7}.get(name, 1e-6)
    absolute = 0 if name in ("vexp", "vtanh", "verf", "vsigmoid") else 2e-6
    np.testing.assert_allclose(y, want, rtol=relative, atol=absolute)

    special = np.zeros(16, np.float32)
    special[:6] = (math.inf, -math.inf, math.nan, 1000, -1000, -0.0)
    special[6:7].view(np.uint32)[:] = 0x7FFFFFFF  # another NaN
    y = np.zeros(16, np.float32)
    run(16 // lanes, 1, special, y)
    want = EXACT[name](torch.from_numpy(special)).numpy()
    undefined = {"vsilu": [-math.inf], "vgelu": [math.inf, -math.inf], "vgelu_tanh": [-math.inf]}
    defined = ~np.isin(special, undefined.get(name, []))
    np.testing.assert_array_equal(y[defined], want[defined])


def test_cpus_by_name() -> None:
    with pytest.raises(BackendError, match="'z80' is not a known CPU; there are host, x86-64-v4"):
        cpu_by_name("z80")
    assert cpu_by_name("host") == host_cpu()
    assert set(host_cpu().required_features()) <= host_features()
    assert cpu_by_name("x86-64-v3").lanes == 8 and not cpu_by_name("x86-64-v4").vnni
    assert cpu_by_name("x86-64-v4-vnni").tvm_target().attrs["mcpu"] == "x86-64-v4"


def test_a_cpu_below_avx2_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "graphwright.backends.tvm.target.host_features"
    monkeypatch.setattr(name, lambda: frozenset({"sse2", "avx"}))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(BackendError, match=r"lacks abm, avx2, .*needs at least x86-64-v3"):
        host_cpu()
