"""ONNX's own tests of its operators, and onnxruntime's operators against onnxruntime."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, inliner, numpy_helper  # noqa: E402

from graphwright.frontend.onnx_models.module import OnnxModule  # noqa: E402
from graphwright.ir.errors import FrontendError  # noqa: E402

TYPES = {1, 2, 3, 5, 6, 7, 9, 10, 11, 16}  # torch computes with all of them
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2}  # else 1e-5: orders of sums, and their rounding
REFUSALS = (
    "operators that are not supported", "which is not supported", "is in training mode",
    "has keys of the past", "depends on data", "they depend on data", "of ONNX is not supported",
    "Expected reduction dim",
)  # fmt: skip
AT_LEAST = 1060  # of those in onnx 1.23


def array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def tensor(value: Any) -> torch.Tensor:
    found = array(value)
    if found.dtype.name == "bfloat16":
        return torch.from_numpy(found.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(found))


def element_types(model: Any) -> set[int]:
    values = [*model.graph.input, *model.graph.output]
    return {
        value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0
        for value in values
    }


def wrong(got: Any, want: Any) -> str | None:
    """What is wrong with a result, None if it is right."""
    want = array(want)
    kind = want.dtype.name
    if isinstance(got, torch.Tensor) and got.dtype is torch.bfloat16:
        found, same = got.float().numpy(), kind == "bfloat16"
    else:
        found = np.asarray(got)
        same = found.dtype == want.dtype
    if not same or found.shape != want.shape:
        return f"{found.dtype} {found.shape}, not {kind} {want.shape}"
    close = np.allclose(
        found.astype(np.float64), want.astype(np.float64), equal_nan=True,
        rtol=TOLERANCE.get(kind, 1e-3 if found.dtype.kind == "f" else 0),
        atol=TOLERANCE.get(kind, 1e-5),
    )  # fmt: skip
    return None if close else "other values"


def test_onnx_s_own_cases() -> None:
    """Every case of supported types gives what it should, or is refused for a known reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = pytest.importorskip("onnx.backend.test.case.node").collect_testcases(None)
    failures, passed, refused = {}, 0, Counter[str]()
    for case in cases:
        model = inliner.inline_local_functions(case.model) if case.model.functions else case.model
        if element_types(model) - TYPES:
            continue
        try:
            module = OnnxModule(model, keeps_types=True)
            for inputs, outputs in case.data_sets:
                names = [each.name for each in model.graph.input]
                found = module.compute({n: tensor(e) for n, e in zip(names, inputs, strict=False)})
                for value, want in zip(model.graph.output, outputs, strict=True):
                    failed = wrong(found[value.name], want)
                    if failed:
                        failures[case.name] = failed
            passed += case.name not in failures
        except FrontendError as error:
            reason = next((each for each in REFUSALS if each in str(error)), None)
            assert reason, f"{case.name}: {error}"
            refused[reason] += 1
    assert not failures
    assert passed >= AT_LEAST, (passed, refused)


MICROSOFT = "com.microsoft"


def run_both(
    nodes: list[Any], given: dict[str, Any], stored: dict[str, Any], outputs: list[str]
) -> None:
    """A graph of contributed operators in onnxruntime, and here."""
    runtime = pytest.importorskip("onnxruntime")
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(each.dtype), list(each.shape)
        )
        for name, each in given.items()
    ]
    graph = helper.make_graph(
        nodes, "case", values,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(each, name) for name, each in stored.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options)
    want = session.run(outputs, given)
    module = OnnxModule(model)
    found = module.compute({name: torch.from_numpy(each) for name, each in given.items()})
    for name, each in zip(outputs, want, strict=True):
        got = found[name]
        assert isinstance(got, torch.Tensor)
        assert np.allclose(got.numpy(), each, rtol=1e-4, atol=2e-5), name


def floats(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"do_rotary": 1}, {"do_rotary": 1, "rotary_interleaved": 1}, {"local_window_size": 3},
     {"softcap": 2.0}, {"scale": 0.3, "do_rotary": 1, "local_window_size": 4}],
    ids=str,
)  # fmt: skip
def test_grouped_query_attention(options: dict[str, Any], packed: bool) -> None:
    heads, kv_heads, dim, length = 4, 2, 16, 7
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    parts = [floats(i, 1, length, size) for i, size in enumerate(sizes)]
    given = {"q": np.concatenate(parts, -1)} if packed else dict(zip("qkv", parts, strict=True))
    past = {name: np.zeros((1, kv_heads, 0, dim), np.float32) for name in ("past_k", "past_v")}
    angle = floats(9, 32, dim // 2)
    stored = {
        "last": np.array([length - 1], np.int32), "total": np.array(length, np.int32),
        "cos": np.cos(angle), "sin": np.sin(angle),
    }  # fmt: skip
    names = ["q", *(("", "") if packed else ("k", "v")), "past_k", "past_v", "last", "total",
             *(("cos", "sin") if options.get("do_rotary") else ())]  # fmt: skip
    node = helper.make_node(
        "GroupQueryAttention", names, ["y", "present_k", "present_v"], domain=MICROSOFT,
        num_heads=heads, kv_num_heads=kv_heads, **options,
    )  # fmt: skip
    if not options.get("do_rotary"):
        del stored["cos"], stored["sin"]
    run_both([node], {**given, **past}, stored, ["y"])


@pytest.mark.parametrize("causal", [0, 1])
def test_multi_head_attention(causal: int) -> None:
    given = {name: floats(i, 1, 6, 32) for i, name in enumerate("qkv")}
    given["mask"] = np.triu(np.full((1, 1, 6, 6), -1e9, np.float32), 1)
    stored = {"bias": floats(5, 96)}
    node = helper.make_node(
        "MultiHeadAttention", ["q", "k", "v", "bias", "", "mask"], ["y"], domain=MICROSOFT,
        num_heads=2, unidirectional=causal,
    )  # fmt: skip
    run_both([node], given, stored, ["y"])


@pytest.mark.parametrize(
    ("bits", "zero"), [(4, "none"), (4, "packed"), (4, "float"), (8, "none"), (8, "packed")]
)
def test_weights_of_few_bits(bits: int, zero: str) -> None:
    n, k, block = 5, 70, 32
    groups = -(-k // block)
    draw = np.random.default_rng(bits)
    stored = {
        "w": draw.integers(0, 256, (n, groups, block * bits // 8)).astype(np.uint8),
        "s": floats(1, n * groups),
    }  # fmt: skip
    if zero == "packed":
        stored["z"] = draw.integers(0, 256, (n * -(-groups * bits // 8),)).astype(np.uint8)
    elif zero == "float":
        stored["z"] = floats(2, n * groups) + 8
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s", *(["z"] if zero != "none" else [])], ["y"],
        domain=MICROSOFT, N=n, K=k, bits=bits, block_size=block,
    )  # fmt: skip
    run_both([node], {"x": floats(3, 1, 4, k)}, stored, ["y"])


def test_a_table_of_four_bits() -> None:
    draw = np.random.default_rng(0)
    stored = {
        "table": draw.integers(0, 256, (11, 32)).astype(np.uint8), "s": floats(1, 11, 2),
    }  # fmt: skip
    node = helper.make_node(
        "GatherBlockQuantized", ["table", "ids", "s"], ["y"], domain=MICROSOFT, bits=4,
        block_size=32, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    run_both([node], {"ids": np.array([[3, 0, 10, 3]], np.int64)}, stored, ["y"])


@pytest.mark.parametrize("kind", ["SkipSimplifiedLayerNormalization", "SkipLayerNormalization"])
def test_norms_with_a_residual(kind: str) -> None:
    simple = kind.startswith("SkipSimplified")
    names = ["x", "skip", "weight", *(() if simple else ("beta",)), "bias"]
    stored = {name: floats(i, 24) for i, name in enumerate(names[2:])}
    node = helper.make_node(kind, names, ["y", "", "", "sum"], domain=MICROSOFT, epsilon=1e-5)
    run_both([node], {"x": floats(7, 1, 3, 24), "skip": floats(8, 1, 3, 24)}, stored, ["y", "sum"])


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("flat", [True, False])
def test_rotary_embedding(interleaved: int, flat: bool) -> None:
    shape = (1, 5, 32) if flat else (1, 2, 5, 16)
    angle = floats(1, 40, 8)
    given = {"x": floats(0, *shape), "at": np.array([[3, 4, 5, 6, 7]], np.int64)}
    stored = {"cos": np.cos(angle), "sin": np.sin(angle)}
    node = helper.make_node(
        "RotaryEmbedding", ["x", "at", "cos", "sin"], ["y"], domain=MICROSOFT,
        interleaved=interleaved, **({"num_heads": 2} if flat else {}),
    )  # fmt: skip
    run_both([node], given, stored, ["y"])


@pytest.mark.parametrize("kind", ["FastGelu", "Gelu", "QuickGelu", "BiasGelu"])
def test_activations(kind: str) -> None:
    names = ["x", "b"] if kind == "BiasGelu" else ["x"]
    node = helper.make_node(kind, names, ["y"], domain=MICROSOFT)
    stored = {"b": floats(1, 9)} if kind == "BiasGelu" else {}
    run_both([node], {"x": 3 * floats(0, 1, 4, 9)}, stored, ["y"])


def test_fused_products() -> None:
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain=MICROSOFT, transB=1, alpha=0.5)
    run_both([node], {"x": floats(0, 1, 3, 8)}, {"w": floats(1, 6, 8)}, ["y"])
