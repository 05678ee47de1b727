"""The row kernels of the TVM backend against the references of their ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from graphwright.backends.tvm.kernels.embedding import embedding
from graphwright.backends.tvm.kernels.float_weights import BFLOAT16, FloatWeights
from graphwright.backends.tvm.kernels.gated_act import gated_act
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.norms import (
    add_layer_norm,
    add_rms_norm,
    layer_norm,
    rms_norm,
)
from graphwright.backends.tvm.kernels.rope import rope
from graphwright.backends.tvm.kernels.select_rows import select_rows
from graphwright.backends.tvm.kernels.standalone import standalone
from graphwright.backends.tvm.target import Cpu, cpu_by_name, host_cpu
from graphwright.ir.op import Sample, get_op
from graphwright.ir.tolerance import check_close

ROWS = (1, 2, 9, 70)
CPU = host_cpu()


def strided(x: torch.Tensor, stride: int) -> np.ndarray:
    """x as rows `stride` elements apart in a memory full of NaN; what a row view looks like."""
    rows = x.reshape(x.shape[0], -1)
    memory = np.full((rows.shape[0], stride), np.nan, np.float32)
    memory[:, : rows.shape[1]] = rows
    return memory


def check(
    kernel: Kernel, rows: int, inputs: list[np.ndarray], wants: list[torch.Tensor], kind: str,
    cpu: Cpu = CPU,
) -> None:  # fmt: skip
    """Runs `kernel` on 1, 2 and 3 threads; what lies behind its outputs must stay untouched."""
    dtypes = [str(each.dtype) for each in inputs] + ["float32"] * len(wants)
    run = standalone(kernel, dtypes, cpu)
    for threads in (1, 2, 3):
        outs = [np.full(want.numel() + 64, -7.0, np.float32) for want in wants]
        run(rows, threads, *inputs, *outs)
        for out, want in zip(outs, wants, strict=True):
            got = torch.from_numpy(out[: want.numel()]).reshape(want.shape)
            check_close(got, want, kind)
            assert (out[want.numel() :] == -7.0).all()


NORMS: dict[str, Callable[..., Kernel]] = {
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "add_rms_norm": add_rms_norm,
    "add_layer_norm": add_layer_norm,
}


def norm_case(name: str, rows: int, groups: int, k: int, affine: bool) -> None:
    torch.manual_seed(rows * k)
    adds, biased = name.startswith("add"), "layer" in name
    x, residual = torch.randn(rows, groups, k) * 3 + 1, torch.randn(rows, groups, k)
    parameters = [torch.randn(k) if affine else None for _ in range(1 + biased)]
    arguments = [x, residual][: 1 + adds]
    wants = get_op(name).reference(*arguments, *parameters, eps=1e-5)
    strides = {"x_stride": groups * k + 3}
    if adds:
        strides["residual_stride"] = groups * k
    flags = {"weight": affine} | ({"bias": affine} if biased else {})
    kernel = NORMS[name](k, **strides, **flags, eps=1e-5, groups=groups, cpu=CPU)
    inputs = [
        strided(each, stride) for each, stride in zip(arguments, strides.values(), strict=True)
    ]
    inputs += [each.numpy() for each in parameters if each is not None]
    check(kernel, rows, inputs, list(wants) if adds else [wants], "reassociating")


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(
    ("rows", "groups", "k"), [(1, 1, 2048), (2, 4, 17), (9, 1, 200), (70, 3, 5)]
)
def test_norms(name: str, rows: int, groups: int, k: int) -> None:
    norm_case(name, rows, groups, k, affine=True)


@pytest.mark.parametrize("name", NORMS)
def test_norms_without_parameters(name: str) -> None:
    norm_case(name, 3, 1, 64, affine=False)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("heads", "dim", "rotary", "interleaved"),
    [(4, 64, 64, False), (3, 80, 20, False), (2, 24, 6, True), (1, 6, 6, False)],
)
def test_rope(rows: int, heads: int, dim: int, rotary: int, interleaved: bool) -> None:
    x, cos, sin = (
        torch.randn(rows, heads, dim),
        torch.randn(rows, rotary),
        torch.randn(rows, rotary),
    )
    want = get_op("rope").reference(x, cos, sin, interleaved=interleaved)
    kernel = rope(
        heads, dim, rotary, x_stride=heads * dim + 5, cos_stride=rotary, sin_stride=rotary + 1,
        interleaved=interleaved, cpu=CPU,
    )  # fmt: skip
    inputs = [strided(x, heads * dim + 5), cos.numpy(), strided(sin, rotary + 1)]
    check(kernel, rows, inputs, [want], "reassociating")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("f", [7, 16, 300, 1000])
def test_gated_act(rows: int, f: int) -> None:
    merged = torch.randn(rows, 2 * f) * 4
    for activation in ("silu", "gelu_tanh") if f < 300 else ("gelu",):
        want = get_op("gated_act").reference(merged[:, :f], merged[:, f:], activation=activation)
        kernel = gated_act(f, gate_stride=2 * f, up_stride=f + 1, activation=activation, cpu=CPU)
        inputs = [merged.numpy(), strided(merged[:, f:], f + 1)]
        check(kernel, rows, inputs, [want], "reassociating")


@pytest.mark.parametrize("k", [24, 5, 300])
def test_select_rows(k: int) -> None:
    x = torch.randn(9, k)
    for chosen in ([5], [8, 0, 0], list(range(9)) * 3):
        rows = torch.tensor(chosen, dtype=torch.int32)
        kernel = select_rows(k, x_stride=k + 2, cpu=CPU)
        want = get_op("select_rows").reference(x, rows)
        check(kernel, len(chosen), [strided(x, k + 2), rows.numpy()], [want], "exact")


def packed_linear(weight: torch.Tensor) -> np.ndarray:
    """[V, K] in the layout [ceil(V / 16), K, 16] of the float32 linear kernel."""
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -weight.shape[0] % 16))
    return padded.reshape(-1, 16, weight.shape[1]).transpose(1, 2).contiguous().numpy()


@pytest.mark.parametrize("layout", ["rows", "linear"])
@pytest.mark.parametrize("k", [24, 5, 300])
def test_embedding(k: int, layout: str) -> None:
    weight = torch.randn(37, k)
    ids = torch.tensor([0, 36, 17, 16, 15, 3, 3])
    kernel = embedding(k, layout=layout, cpu=CPU)
    table = weight.numpy() if layout == "rows" else packed_linear(weight)
    check(kernel, len(ids), [ids.numpy(), table], [weight[ids]], "exact")


def rows_of(value: torch.Tensor) -> int:
    return value.shape[:-1].numel()


def op_sample(name: str, sample: Sample) -> tuple[Kernel, int, list[Any]]:
    """The kernel, its rows and its inputs for one declared sample of an op."""
    args, k = sample.args, sample.args[0].shape[-1]
    options = {"cpu": CPU, **sample.kwargs}
    if name == "gated_act":
        return gated_act(k, gate_stride=k, up_stride=k, **options), rows_of(args[0]), list(args)
    if name == "embedding":
        weights = FloatWeights.of(args[0].dtype)
        kernel = embedding(k, weights=weights, layout="rows", cpu=CPU)
        table = args[0].view(torch.uint16) if weights is BFLOAT16 else args[0]
        return kernel, args[1].numel(), [args[1], table]
    if name == "select_rows":
        return select_rows(k, x_stride=k, cpu=CPU), len(args[1]), list(args)
    if name == "rope":
        heads, rotary = args[0].shape[1], args[1].shape[1]
        kernel = rope(
            heads, k, rotary, x_stride=heads * k, cos_stride=rotary, sin_stride=rotary, **options
        )
        return kernel, len(args[0]), list(args)
    flag = args[-1] is not None
    options |= {"weight": flag, "x_stride": k} | ({"bias": flag} if "layer" in name else {})
    if name.startswith("add"):
        options["residual_stride"] = k
    inputs = [each for each in args if each is not None]
    return NORMS[name](k, **options), rows_of(args[0]), inputs


@pytest.mark.parametrize("name", [*NORMS, "rope", "gated_act", "select_rows", "embedding"])
def test_declared_samples(name: str) -> None:
    op = get_op(name)
    for sample in op.samples():
        wants = op.reference(*sample.args, **sample.kwargs)
        wants = list(wants) if isinstance(wants, tuple) else [wants]
        kernel, rows, inputs = op_sample(name, sample)
        arrays = [np.ascontiguousarray(each.numpy()) for each in inputs]
        check(kernel, rows, arrays, wants, op.exactness)


def test_other_vector_width() -> None:
    cpu = cpu_by_name("x86-64-v3")
    if CPU.name == "aarch64":
        pytest.skip("this machine is no x86-64")
    x, weight = torch.randn(3, 100), torch.randn(100)
    kernel = rms_norm(100, x_stride=100, weight=True, eps=1e-6, cpu=cpu)
    want = get_op("rms_norm").reference(x, weight, eps=1e-6)
    check(kernel, 3, [x.numpy(), weight.numpy()], [want], "reassociating", cpu)


def test_equal_parameters_give_equal_names() -> None:
    def make(x_stride: int = 8, weight: bool = True, eps: float = 1e-5) -> Kernel:
        return rms_norm(8, x_stride=x_stride, weight=weight, eps=eps, cpu=CPU)

    names = [make().name, make(eps=1e-6).name, make(weight=False).name, make(x_stride=9).name]
    assert make().name == names[0] and len(set(names)) == 4
    assert all(name.isidentifier() for name in names)


def test_vector_access_assumes_the_alignment_of_one_element() -> None:
    from graphwright.backends.tvm.kernels.standalone import build

    kernel = rms_norm(64, x_stride=64, weight=True, eps=1e-5, cpu=CPU)
    text = str(build(kernel, ["float32"] * 3, CPU).mod.inspect_source("ll"))
    accesses = [line for line in text.splitlines() if f" <{CPU.lanes} x float>" in line]
    accesses = [line for line in accesses if "= load" in line or " store" in line]
    assert accesses and all(", align 4," in line for line in accesses)
