"""Matrix kernels, quantization of rows and vector math: compiled code against numpy and torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels import vector
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition
from graphwright.backends.tvm.kernels.linear_f32 import linear_f32, pack_f32
from graphwright.backends.tvm.kernels.linear_w8 import linear_w8, pack_w8
from graphwright.backends.tvm.kernels.quantize_rows import (
    group_count,
    padded,
    quantize_rows,
    row_size,
)
from graphwright.backends.tvm.kernels.standalone import Run, assembly, build, standalone
from graphwright.backends.tvm.target import Cpu, cpu_by_name, host_cpu, host_features
from graphwright.ir.activations import ACTIVATIONS
from graphwright.ir.errors import BackendError
from graphwright.ir.schemes import quantize_activation, quantize_weight

X86 = ("x86-64-v3", "x86-64-v4", "x86-64-v4-vnni")
HERE = [name for name in X86 if cpu_by_name(name).features <= host_features()] or [host_cpu().name]
DTYPES_W8 = ("int8", "float32", "int8", "float32")


def runnable(name: str) -> Cpu:
    cpu = cpu_by_name(name)
    if not cpu.features <= host_features():
        pytest.skip(f"this machine has no {name}")
    return cpu


@dataclass(frozen=True)
class Case:
    """One matrix product: its static parameters, and the sizes of a call."""

    n: int
    k: int
    cpu: str
    max_rows: int = 512
    rows: int = 1
    threads: int = 1
    padding: int = 0  # elements between the rows of x, and of the residual
    bias: bool = False
    activation: str | None = None
    residual: bool = False
    group: int | None = None

    @property
    def options(self) -> dict[str, object]:
        return {
            "bias": self.bias,
            "activation": self.activation,
            "residual_stride": self.n + self.padding if self.residual else None,
            "max_rows": self.max_rows,
            "cpu": cpu_by_name(self.cpu),
        }

    @property
    def epilogue_dtypes(self) -> list[str]:
        return ["float32"] * (self.bias + self.residual + 1)

    def finish(self, y: np.ndarray, seed: int = 1) -> tuple[list[np.ndarray], np.ndarray]:
        """The epilogue's operands, and what it makes of the float64 sums `y`."""
        random = np.random.default_rng(seed)
        operands = []
        if self.bias:
            operands.append(random.standard_normal(self.n, np.float32))
            y = y + operands[-1]
        y = ACTIVATIONS[self.activation or "none"](torch.from_numpy(y)).numpy()
        if self.residual:
            residual = random.standard_normal((self.rows, self.n + self.padding), np.float32)
            operands.append(residual)
            y = y + residual[:, : self.n]
        return operands, y


@cache
def f32_kernel(case: Case) -> Run:
    kernel = linear_f32(case.n, case.k, x_stride=case.k + case.padding, **case.options)  # type: ignore[arg-type]
    return standalone(kernel, ["float32", "float32", *case.epilogue_dtypes], runnable(case.cpu))


@cache
def w8_kernels(case: Case) -> tuple[Run, Run]:
    cpu = runnable(case.cpu)
    stride = case.k + case.padding
    quantize = quantize_rows(case.k, x_stride=stride, group=case.group, cpu=cpu)
    product = linear_w8(case.n, case.k, group=case.group, **case.options)  # type: ignore[arg-type]
    return (
        standalone(quantize, ["float32", "int8", "float32"], cpu),
        standalone(product, [*DTYPES_W8, *case.epilogue_dtypes], cpu),
    )


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=4e-6 * max(1.0, np.abs(want).max()))


def check_f32(case: Case) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((case.n, case.k), np.float32) * np.float32(case.k**-0.5)
    x = random.standard_normal((case.rows, case.k + case.padding), np.float32)
    exact = x[:, : case.k].astype(np.float64) @ weight.T.astype(np.float64)
    operands, want = case.finish(exact)
    run = f32_kernel(replace(case, rows=1, threads=1))
    memory = np.full(case.rows * case.n + 64, np.nan, np.float32)
    run_into(run, case, [x, pack_f32(weight), *operands], memory)
    assert_close(memory[: want.size].reshape(want.shape), want)


def run_into(run: Run, case: Case, inputs: list[np.ndarray], memory: np.ndarray) -> None:
    """Runs with `memory` as the output, of which only rows * n may change."""
    run(case.rows, case.threads, *inputs, memory)
    assert np.isnan(memory[case.rows * case.n :]).all(), "written behind the end"


def check_w8(case: Case, extreme: bool = False) -> None:
    torch.manual_seed(0)
    scheme = f"w8g{case.group}" if case.group else "w8"
    weight = torch.randn(case.n, case.k) * case.k**-0.5
    x = torch.randn(case.rows, case.k + case.padding)
    if extreme:  # every product 127 * 127, in pairs of every sign
        weight = torch.tensor([1.0, -1.0, 1.0, 1.0]).repeat(case.k // 4).repeat(case.n, 1)
        x = torch.tensor([1.0, -1.0, -1.0, -1.0]).repeat(case.k // 4).repeat(case.rows, 1)
        weight[::2] = 1.0
        x[::2] = -1.0
    q, scale = quantize_weight(weight, scheme)
    groups = group_count(case.k, case.group)
    want_q, want_scale = quantize_activation(x[:, : case.k], groups)

    quantize, run = w8_kernels(replace(case, rows=1, threads=1))
    x_q = np.full((case.rows, row_size(case.k, case.group)), 77, np.int8)
    x_scale = np.zeros((case.rows, groups), np.float32)
    quantize(case.rows, case.threads, x.numpy(), x_q, x_scale)
    check_quantized(x_q, x_scale, want_q, want_scale, case.k)

    dots = torch.einsum(
        "rgk,ngk->rng",
        want_q.reshape(case.rows, groups, -1).double(),
        q.reshape(case.n, groups, -1).double(),
    )
    exact = (dots * want_scale[:, None].double() * scale.double()).sum(-1).numpy()
    operands, want = case.finish(exact)
    memory = np.full(case.rows * case.n + 64, np.nan, np.float32)
    run_into(run, case, [x_q, x_scale, *pack_w8(q.numpy(), scale.numpy()), *operands], memory)
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


ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 20, 50)  # around the limits of few and many, of blocks


@pytest.mark.parametrize("cpu", X86[:2])
def test_linear_f32_for_any_rows_and_threads(cpu: str) -> None:
    case = Case(37, 45, cpu, padding=3, bias=True, activation="silu", residual=True)
    for rows in ROWS:
        for threads in (1, 2, 3, 4):
            check_f32(replace(case, rows=rows, threads=threads))


@pytest.mark.parametrize("cpu", X86)
@pytest.mark.parametrize("group", [None, 32])
def test_linear_w8_for_any_rows_and_threads(cpu: str, group: int | None) -> None:
    k = 45 if group is None else 96
    options = {"bias": True, "activation": "silu", "residual": True}
    case = Case(37, k, cpu, padding=3, group=group, **options)  # type: ignore[arg-type]
    for rows in ROWS:
        for threads in (1, 2, 4):
            check_w8(replace(case, rows=rows, threads=threads))


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


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.builds(
        Case,
        n=st.integers(1, 100),
        k=st.sampled_from([1, 3, 17, 128, 130, 256, 384]),
        max_rows=st.sampled_from([4, 512]),
        cpu=st.sampled_from(HERE),
        rows=st.integers(1, 40),
        threads=st.integers(1, 4),
        padding=st.integers(0, 5),
        bias=st.booleans(),
        activation=st.sampled_from([None, *ACTIVATIONS]),
        residual=st.booleans(),
        group=st.sampled_from([None, 32, 64, 128]),
    )
)
def test_linear_w8_of_any_size(case: Case) -> None:
    group = case.group if case.group and case.k % case.group == 0 else None
    check_w8(replace(case, group=group, rows=min(case.rows, case.max_rows)))


@pytest.mark.parametrize("cpu", X86)
@pytest.mark.parametrize("rows", [4, 20])
def test_linear_w8_never_saturates(cpu: str, rows: int) -> None:
    check_w8(Case(16, 256, cpu, rows=rows), extreme=True)


@pytest.mark.parametrize("rows", [4, 20])
def test_a_residual_may_be_updated_in_place(rows: int) -> None:
    random = np.random.default_rng(0)
    case = Case(40, 64, host_cpu().name, rows=rows, threads=2, residual=True)
    weight = random.standard_normal((case.n, case.k), np.float32) * np.float32(case.k**-0.5)
    x = random.standard_normal((case.rows, case.k), np.float32)
    (residual,), want = case.finish(x.astype(np.float64) @ weight.T.astype(np.float64))
    f32_kernel(replace(case, rows=1, threads=1))(
        case.rows, case.threads, x, pack_f32(weight), residual, residual
    )
    assert_close(residual, want)


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
    weight = np.arange(18 * 5, dtype=np.float32).reshape(18, 5)
    packed = pack_f32(weight)
    assert packed.shape == (2, 5, 16)
    assert packed[1, 4, 1] == weight[17, 4] and not packed[1, :, 2:].any()
    q, scale = pack_w8(weight.astype(np.int8), np.arange(18, dtype=np.float32))
    assert q.shape == (2, 16, 16, 4) and scale.shape == (2, 1, 16)
    assert q[1, 1, 1, 0] == weight[17, 4] and not q[:, 2:].any() and scale[1, 0, 1] == 17


def instructions(kernel: Kernel, dtypes: list[str], cpu: Cpu) -> set[str]:
    text = assembly(kernel, dtypes, cpu)
    assert "AllocWorkspace" not in text, "a kernel allocates nothing"
    lines = (line.split() for line in text.splitlines())
    words = {words[0] for words in lines if words}
    return words | {register for register in ("%ymm", "%zmm") if register in text}


@pytest.mark.parametrize(
    ("cpu", "max_rows", "wanted", "unwanted"),
    [
        ("x86-64-v3", 4, {"vpsignb", "vpmaddubsw", "vpmaddwd", "prefetcht0"}, {"%zmm", "vpcmpgtb"}),
        ("x86-64-v3", 512, {"vpsignb", "vpmaddubsw", "vpmaddwd", "vpcmpgtb", "vpxor"}, {"%zmm"}),
        ("x86-64-v4", 512, {"vpsignb", "vpmaddubsw", "prefetcht0"}, {"vpdpbusd"}),
        ("x86-64-v4-vnni", 4, {"vpdpbusd", "%zmm", "prefetcht0"}, {"vpmaddubsw"}),
        ("x86-64-v4-vnni", 512, {"vpdpbusd", "%zmm", "prefetcht1"}, {"vpmaddubsw"}),
    ],
)
def test_linear_w8_uses_the_integer_instructions(
    cpu: str, max_rows: int, wanted: set[str], unwanted: set[str]
) -> None:
    level = cpu_by_name(cpu)
    kernel = linear_w8(64, 256, max_rows=max_rows, cpu=level)
    found = instructions(kernel, [*DTYPES_W8, "float32"], level)
    assert wanted <= found and not unwanted & found


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
    kernel = linear_f32(64, 256, x_stride=256, activation="gelu", max_rows=8, cpu=level)
    assert wanted <= instructions(kernel, ["float32"] * 3, level)


def test_every_kernel_builds_for_aarch64() -> None:
    cpu = cpu_by_name("aarch64")
    for max_rows in (8, 512):
        build(linear_w8(20, 64, group=32, max_rows=max_rows, cpu=cpu), [*DTYPES_W8, "float32"], cpu)
    build(quantize_rows(50, x_stride=50, cpu=cpu), ["float32", "int8", "float32"], cpu)


def test_names_tell_kernels_apart() -> None:
    cpu, other = cpu_by_name("x86-64-v3"), cpu_by_name("x86-64-v4")
    base: dict[str, object] = {"x_stride": 64, "max_rows": 4, "cpu": cpu}
    variants: list[dict[str, object]] = [
        {},
        {"x_stride": 65},
        {"max_rows": 512},
        {"bias": True},
        {"activation": "relu"},
        {"residual_stride": 16},
        {"cpu": other},
    ]
    names = [linear_f32(16, 64, **{**base, **each}).name for each in variants]  # type: ignore[arg-type]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    assert linear_f32(16, 64, x_stride=64, max_rows=1, activation="none", cpu=cpu).name == names[0]


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
