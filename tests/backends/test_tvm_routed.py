"""The kernels of routed experts against their ops, and whose weights they touch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.backends.blobs import BlobTable
from graphwright.backends.tvm.kernels.float_weights import FLOAT32, pack_routed_float
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.linear_float import float_tilings
from graphwright.backends.tvm.kernels.linear_quantized import tilings_of, weight_pointers
from graphwright.backends.tvm.kernels.matmul import Tiling, Tilings
from graphwright.backends.tvm.kernels.quantize_rows import quantize_rows, row_size
from graphwright.backends.tvm.kernels.routed_groups import groups_ints, routed_groups
from graphwright.backends.tvm.kernels.routed_linear_float import routed_linear_float
from graphwright.backends.tvm.kernels.routed_linear_quantized import routed_linear_quantized
from graphwright.backends.tvm.kernels.standalone import Run, build, standalone
from graphwright.backends.tvm.kernels.top_k import top_k
from graphwright.backends.tvm.kernels.weighted_sum import weighted_sum
from graphwright.backends.tvm.layouts import routed_float_layout, routed_quantized_layouts
from graphwright.backends.tvm.product_choices import small_tilings
from graphwright.backends.tvm.target import cpu_by_name, host_cpu, host_features
from graphwright.ir.op import get_op
from graphwright.ir.schemes import Scheme, quantize_weight
from graphwright.ir.tolerance import check_close
from graphwright.ir.weights import ConstantTensor

CPU = host_cpu()
X86 = ("x86-64-v3", "x86-64-v4", "x86-64-v4-vnni", "x86-64-v4-amx")
HERE = [name for name in X86 if cpu_by_name(name).features <= host_features()] or [CPU.name]


@dataclass(frozen=True)
class Case:
    """One routed product: its static parameters, then the sizes of a call."""

    experts: int
    slots: int
    n: int
    k: int
    cpu: str = CPU.name
    shared: bool = True
    bias: bool = False
    scheme: str = "w8"  # of a quantized product
    padding: int = 0  # elements between the rows of x
    max_rows: int = 512
    small: bool = False  # one kind of blocks
    optional: bool = False  # may pairs have no expert? Only of floats
    residual: bool = False  # only of floats
    adds: bool = False  # to what is there; only of floats
    rows: int = 1
    threads: int = 1

    @property
    def static(self) -> Case:
        return replace(self, rows=1, threads=1)

    @property
    def x_row(self) -> int:
        return self.k * (1 if self.shared else self.slots)

    @property
    def options(self) -> dict[str, Any]:
        names = ("slots", "shared", "bias", "max_rows")
        return {name: getattr(self, name) for name in names} | {"cpu": cpu_by_name(self.cpu)}

    def tilings(self, default: Tilings) -> Tilings | None:
        return small_tilings(1, default) if self.small else None

    def data(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """x with NaN between its rows, experts with repetitions, weight, bias."""
        random = torch.Generator().manual_seed(self.rows)
        x = torch.randn(self.rows, self.x_row + self.padding, generator=random)
        x[:, self.x_row :] = torch.nan
        kinds = self.experts + self.optional
        experts = torch.randint(0, kinds, (self.rows, self.slots), generator=random)
        weight = torch.randn(self.experts, self.n, self.k, generator=random) * self.k**-0.5
        bias = torch.randn(self.experts, self.n, generator=random) if self.bias else None
        return x, experts, weight, bias

    @property
    def there(self) -> np.ndarray:
        random = np.random.default_rng(self.rows)
        shape = (self.rows, self.slots, self.n)
        return random.normal(size=shape).astype(np.float32)

    def added(self) -> np.ndarray:
        """A residual with NaN between its rows."""
        random = np.random.default_rng(self.rows)
        found = random.normal(size=(self.rows, self.slots * self.n + self.padding))
        found[:, self.slots * self.n :] = np.nan
        return found.astype(np.float32)

    def rows_of(self, x: torch.Tensor) -> torch.Tensor:
        """x as the op takes it."""
        x = x[:, : self.x_row]
        return x if self.shared else x.reshape(self.rows, self.slots, self.k)

    def grouped(self, experts: torch.Tensor) -> np.ndarray:
        kernel = routed_groups(
            self.experts, self.slots, experts_stride=self.slots, optional=self.optional,
            cpu=cpu_by_name(self.cpu),
        )  # fmt: skip
        groups = np.full(self.rows * groups_ints(self.slots), -9, np.int32)
        compiled(kernel, ("int64", "int32"), self.cpu)(self.rows, 2, experts.numpy(), groups)
        return groups

    def outputs(self, run: Run, *inputs: np.ndarray) -> torch.Tensor:
        """Runs; only the rows of the output may be written."""
        size = self.rows * self.slots * self.n
        memory = np.full(size + 64, np.nan, np.float32)
        if self.adds:
            memory[:size] = self.there.reshape(-1)
        run(self.rows, self.threads, *inputs, memory)
        assert np.isnan(memory[size:]).all(), "written behind the end"
        return torch.from_numpy(memory[:size]).reshape(self.rows, self.slots, self.n)


_COMPILED: dict[tuple[str, str], Run] = {}


def compiled(kernel: Kernel, dtypes: tuple[str, ...], cpu: str) -> Run:
    """`standalone`, once for each kernel."""
    key = (kernel.name, cpu)
    if key not in _COMPILED:
        _COMPILED[key] = standalone(kernel, dtypes, cpu_by_name(cpu))
    return _COMPILED[key]


@cache
def f32_kernel(case: Case) -> Run:
    kernel = routed_linear_float(
        case.n, case.k, x_stride=case.x_row + case.padding,
        tilings=case.tilings(float_tilings(cpu_by_name(case.cpu), FLOAT32)),
        optional=case.optional, adds=case.adds,
        residual=case.slots * case.n + case.padding if case.residual else None, **case.options,
    )  # fmt: skip
    floats = ["float32"] * (3 + case.bias + case.residual)
    return standalone(kernel, ["int32", *floats], cpu_by_name(case.cpu))


@cache
def quantized_kernels(case: Case) -> tuple[Run, Run]:
    cpu, scheme = cpu_by_name(case.cpu), Scheme.parse(case.scheme)
    quantize = quantize_rows(
        case.k, x_stride=case.x_row + case.padding, group=scheme.group,
        vectors=1 if case.shared else case.slots, cpu=cpu,
    )  # fmt: skip
    product = routed_linear_quantized(
        case.n, case.k, scheme, tilings=case.tilings(tilings_of(cpu, scheme)), **case.options
    )
    weights = [dtype for _, dtype in weight_pointers(scheme)]
    dtypes = ["int32", "int8", "float32", *weights, *["float32"] * (1 + case.bias)]
    return standalone(quantize, ["float32", "int8", "float32"], cpu), standalone(
        product, dtypes, cpu
    )


def check_f32(case: Case, experts: torch.Tensor | None = None) -> None:
    x, drawn, weight, bias = case.data()
    experts = drawn if experts is None else experts
    inputs = [case.grouped(experts), x.numpy(), pack_routed_float(weight, FLOAT32)]
    inputs += [] if bias is None else [bias.numpy()]
    residual = torch.from_numpy(case.there) if case.adds else None
    if case.residual:
        inputs.append(case.added())
        rows = torch.from_numpy(inputs[-1])[:, : case.slots * case.n]
        residual = rows.reshape(case.rows, case.slots, case.n)
    want = get_op("routed_linear").reference(
        case.rows_of(x), experts, weight, bias, residual, optional=case.optional
    )
    got = case.outputs(f32_kernel(case.static), *inputs)
    check_close(got, want, "reassociating")


def check_quantized(case: Case, experts: torch.Tensor | None = None) -> None:
    x, drawn, weight, bias = case.data()
    experts = drawn if experts is None else experts
    scheme = Scheme.parse(case.scheme)
    q, scale, *zero = quantize_weight(weight, case.scheme)
    want = get_op("quantized_routed_linear").reference(
        case.rows_of(x), experts, q, scale, bias, *zero, scheme=case.scheme
    )
    quantize, run = quantized_kernels(case.static)
    vectors = case.rows * (1 if case.shared else case.slots)
    x_q = np.full((vectors, row_size(case.k, scheme.group)), 77, np.int8)
    x_scale = np.full((vectors, scale.shape[2]), np.nan, np.float32)
    quantize(case.rows, case.threads, x.numpy(), x_q, x_scale)
    parts = zip(routed_quantized_layouts(scheme), (q, scale, *zero), strict=True)
    packed = [layout.pack(part) for layout, part in parts]
    inputs = [case.grouped(experts), x_q, x_scale, *packed]
    got = case.outputs(run, *inputs, *([] if bias is None else [bias.numpy()]))
    check_close(got, want, "reassociating")


ROWS = (1, 2, 3, 8, 9, 17, 40, 90)  # around the limits of few and many, of blocks


@pytest.mark.parametrize("cpu", [name for name in HERE if name != "x86-64-v4-vnni"])
def test_routed_linear_for_any_rows_and_threads(cpu: str) -> None:
    case = Case(5, 3, 37, 45, cpu, padding=3, bias=True, shared=False)
    for count in ROWS:
        for threads in (1, 2, 3, 5):
            check_f32(replace(case, rows=count, threads=threads))


@pytest.mark.parametrize("cpu", HERE)
@pytest.mark.parametrize(("k", "scheme"), [(45, "w8"), (96, "w8g32"), (96, "w4g32z")])
def test_quantized_routed_linear_for_any_rows_and_threads(cpu: str, k: int, scheme: str) -> None:
    case = Case(5, 3, 37, k, cpu, padding=3, bias=True, shared=False, scheme=scheme)
    for count in ROWS:
        for threads in (1, 2, 5):
            check_quantized(replace(case, rows=count, threads=threads))


CASES = st.builds(
    Case,
    experts=st.integers(1, 40),
    slots=st.integers(1, 9),
    n=st.integers(1, 70),
    k=st.sampled_from([1, 3, 17, 64, 130, 256]),
    cpu=st.sampled_from(HERE),
    shared=st.booleans(),
    bias=st.booleans(),
    scheme=st.sampled_from(["w8", "w8g32", "w8g64", "w8g128", "w4g32", "w4g64z", "w4g128"]),
    padding=st.integers(0, 5),
    max_rows=st.sampled_from([8, 512]),
    small=st.booleans(),
    rows=st.integers(1, 60),
    threads=st.integers(1, 4),
)


def test_pairs_that_come_alone_by_long_tiles() -> None:
    """Experts of one pair, whose tiles are read side by side, and of several."""
    for threads in (1, 2, 5):
        case = Case(5, 3, 150, 520, CPU.name, bias=True, shared=False, rows=1, threads=threads)
        check_f32(case)
        check_quantized(replace(case, k=512, scheme="w8"))
        check_quantized(replace(case, k=1024, scheme="w4g32", rows=2))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(CASES)
def test_routed_linear_of_any_size(case: Case) -> None:
    check_f32(replace(case, rows=min(case.rows, case.max_rows)))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(CASES)
def test_pairs_without_an_expert_become_zero(case: Case) -> None:
    """Or their residual, or they stay what they are."""
    for residual, adds in ((False, False), (True, False), (False, True)):
        rows = min(case.rows, case.max_rows)
        case = replace(case, rows=rows, optional=True, residual=residual, adds=adds)
        check_f32(case)
        none = torch.full((case.rows, case.slots), case.experts)
        check_f32(case, none)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(CASES)
def test_quantized_routed_linear_of_any_size(case: Case) -> None:
    fitting = Scheme.parse(case.scheme).for_inputs(case.k)
    check_quantized(replace(case, rows=min(case.rows, case.max_rows), scheme=str(fitting)))


@pytest.mark.parametrize("max_rows", [8, 512])
@pytest.mark.parametrize("count", [1, 7, 8])
def test_routings_that_are_not_balanced(max_rows: int, count: int) -> None:
    """All to one expert, to the first and the last only, to one more than once in a token."""
    count = count if max_rows == 8 else count * 9
    case = Case(6, 2, 24, 32, max_rows=max_rows, rows=count, threads=2)
    for pair in ([3, 3], [0, 0], [5, 5], [0, 5], [4, 1]):
        experts = torch.tensor([pair] * count)
        check_f32(case, experts)
        check_quantized(case, experts)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(0, 10**6))
def test_groups_are_a_stable_sort(count: int, seed: int) -> None:
    case = Case(11, 4, 1, 1, rows=count)
    experts = torch.from_numpy(np.random.default_rng(seed).integers(0, 11, (count, 4)) // 2 * 2)
    groups, pairs = case.grouped(experts), count * 4
    present, counts = np.unique(experts.numpy(), return_counts=True)
    runs = len(present)
    order = np.argsort(experts.numpy().reshape(-1), kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    assert groups[0] == runs
    np.testing.assert_array_equal(groups[1 : 1 + pairs], order)
    np.testing.assert_array_equal(groups[1 + pairs : 1 + pairs + runs], present)
    np.testing.assert_array_equal(groups[1 + 2 * pairs : 2 + 2 * pairs + runs], starts)
    assert (groups[2 + 3 * pairs :] == -9).all(), "written behind the end"


TOP_K_DTYPES = ("float32", "float32", "int64")


@pytest.mark.parametrize(
    ("e", "k", "vectors"), [(512, 32, 1), (8, 2, 1), (7, 7, 3), (33, 1, 1), (1, 1, 2)]
)
def test_top_k(e: int, k: int, vectors: int) -> None:
    kernel = top_k(e, k, x_stride=vectors * e + 3, vectors=vectors, cpu=CPU)
    run = compiled(kernel, TOP_K_DTYPES, CPU.name)
    for count, different in ((1, 1000), (5, 4), (40, 1), (3, 30)):
        x = torch.randint(-different, different, (count, vectors * e + 3)).float()
        x[:, ::5] = -torch.inf
        part = x[:, : vectors * e].reshape(count, vectors, e)
        wants = get_op("top_k").reference(part, k=k)
        for threads in (1, 2, 3):
            values = np.full((count, vectors, k), np.nan, np.float32)
            indices = np.full((count, vectors, k), -1, np.int64)
            run(count, threads, x.numpy(), values, indices)
            assert torch.equal(torch.from_numpy(values), wants[0])
            assert torch.equal(torch.from_numpy(indices), wants[1])


def test_top_k_of_nan_stays_in_range() -> None:
    run = compiled(top_k(6, 3, x_stride=6, cpu=CPU), TOP_K_DTYPES, CPU.name)
    x = np.full((2, 6), np.nan, np.float32)
    x[1, 2:] = 1
    values, indices = np.zeros((2, 3), np.float32), np.full((2, 3), -1, np.int64)
    run(2, 1, x, values, indices)
    assert ((indices >= 0) & (indices < 6)).all()


@pytest.mark.parametrize(("n", "slots"), [(48, 2), (33, 1), (300, 8), (5, 3)])
def test_weighted_sum(n: int, slots: int) -> None:
    strides = {"y_stride": slots * n + 2, "weights_stride": slots + 1}
    run = compiled(weighted_sum(n, slots, **strides, cpu=CPU), ("float32",) * 3, CPU.name)
    for count in (1, 2, 70):
        y, weights = torch.randn(count, slots * n + 2), torch.randn(count, slots + 1)
        part = y[:, : slots * n].reshape(count, slots, n)
        want = get_op("weighted_sum").reference(part, weights[:, :slots])
        for threads in (1, 3):
            out = np.full((count, n), np.nan, np.float32)
            run(count, threads, y.numpy(), weights.numpy(), out)
            check_close(torch.from_numpy(out), want, "exact")


def test_kernels_build_for_aarch64() -> None:
    cpu = cpu_by_name("aarch64")
    options: dict[str, Any] = {"slots": 2, "shared": True, "max_rows": 512, "cpu": cpu}
    w8 = ["int32", "int8", "float32", "int8", "float32", "float32"]
    build(routed_linear_float(20, 24, x_stride=24, **options), ["int32"] + ["float32"] * 3, cpu)
    build(routed_linear_quantized(20, 64, Scheme(8, 32), **options), w8, cpu)
    build(routed_groups(4, 2, experts_stride=2, cpu=cpu), ["int64", "int32"], cpu)
    build(top_k(8, 2, x_stride=8, cpu=cpu), TOP_K_DTYPES, cpu)
    build(weighted_sum(20, 2, y_stride=40, weights_stride=2, cpu=cpu), ["float32"] * 3, cpu)


def test_names_tell_kernels_apart() -> None:
    base: dict[str, Any] = {"slots": 2, "shared": True, "max_rows": 4, "cpu": CPU}
    variants: list[dict[str, Any]] = [
        {}, {"slots": 3}, {"shared": False}, {"max_rows": 512}, {"bias": True},
        {"max_rows": 512, "tilings": (Tiling((2, 1), 1), Tiling((2, 1), 1), 0)},
    ]  # fmt: skip
    names = [
        routed_linear_quantized(16, 64, Scheme.parse("w8"), **{**base, **each}).name
        for each in variants
    ]
    names += [
        routed_linear_quantized(16, 64, Scheme.parse(text), **base).name
        for text in ("w8g32", "w4g32", "w4g32z")
    ]
    strides = [128, 130]
    names += [
        routed_linear_float(16, 64, x_stride=stride, **{**base, "shared": shared}).name
        for stride in strides
        for shared in (True, False)
    ]
    more: list[dict[str, Any]] = [
        {"optional": True},
        {"residual": 16},
        {"residual": 20},
        {"adds": True},
    ]
    names += [routed_linear_float(16, 64, x_stride=128, **base, **each).name for each in more]
    names += [routed_groups(4, 2, experts_stride=2, optional=each, cpu=CPU).name
              for each in (False, True)]  # fmt: skip
    names += [top_k(8, 2, x_stride=8, cpu=CPU).name]
    names += [top_k(4, 2, x_stride=8, vectors=2, cpu=CPU).name]
    assert len(set(names)) == len(names) and all(name.isidentifier() for name in names)


def test_experts_are_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphwright.backends import blobs as module

    torch.manual_seed(0)
    weight, q = torch.randn(5, 20, 6), torch.randint(-127, 128, (5, 20, 6), dtype=torch.int8)
    table = BlobTable()
    table.add("weight", ConstantTensor.of(weight.bfloat16()), routed_float_layout(FLOAT32))
    values, scales = routed_quantized_layouts(Scheme(8, 32))
    table.add("q", ConstantTensor.of(q), values)
    table.add("scale", ConstantTensor.of(torch.rand(5, 20, 2)), scales)
    sizes = [5 * 32 * 6 * 4, 5 * 32 * 64, 5 * 32 * 2 * 4]
    assert [blob["bytes"] for blob in table.describe()] == sizes
    whole = b"".join(table.chunks())
    monkeypatch.setattr(module, "PIECE", 240)
    pieces = list(table.chunks())
    assert len(pieces) == 3 + 3 + 1 + 3 and b"".join(pieces) == whole
    first = np.frombuffer(whole[: sizes[0]], np.float32).reshape(5, 2, 6, 16)
    assert first[4, 1, 5, 3] == weight[4, 19, 5].bfloat16().float() and not first[:, 1, :, 4:].any()
    start = table.offsets()["q"]
    second = np.frombuffer(whole[start : start + sizes[1]], np.int8).reshape(5, 2, 16, 16, 4)
    assert second[3, 1, 1, 2, 1] == q[3, 18, 5] and not second[:, 1, :, 4:].any()


UNREADABLE = """
import ctypes, mmap, os, sys
import numpy as np, torch
from test_tvm_routed import FLOAT32, Case, f32_kernel, pack_routed_float

def run_without(*hidden):
    case = Case(8, 2, 1024, 16, max_rows=8)
    x, _, weight, _ = case.data()
    experts, expert_bytes = torch.tensor([[6, 1]]), 1024 * 16 * 4
    packed = np.frombuffer(mmap.mmap(-1, 8 * expert_bytes), np.float32)
    packed[:] = pack_routed_float(weight, FLOAT32).reshape(-1)
    for expert in hidden:
        address = ctypes.c_void_p(packed.ctypes.data + expert * expert_bytes)
        assert ctypes.CDLL(None).mprotect(address, ctypes.c_size_t(expert_bytes), 0) == 0
    got = case.outputs(f32_kernel(case.static), case.grouped(experts), x.numpy(), packed)
    assert torch.allclose(got[0], torch.einsum("k,snk->sn", x[0], weight[experts[0]]), atol=1e-5)

for hidden in ((0, 2, 3, 4, 5, 7), (0, 1)):
    child = os.fork()
    if child == 0:
        run_without(*hidden)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_weights_of_other_experts_are_not_touched() -> None:
    """Their pages are taken away. The second run shows that reading one would be a fault."""
    path = ":".join([str(Path(__file__).parent), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", UNREADABLE], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert result.stdout.split() == ["0", str(-signal.SIGSEGV)], result.stderr
