"""ONNX files of decoders: as torch exports them, with a cache or without, as onnxruntime-genai's
builder writes them; and files that are none."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared_data import shared_path
from tiny_models import tiny_model
from torch import nn

import graphwright
from graphwright.__main__ import main
from graphwright.ir.errors import FrontendError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from graphwright.frontend.onnx_models.decoder import capture_onnx, onnx_decoder  # noqa: E402
from graphwright.frontend.stateless import float32_parameters  # noqa: E402

PROMPT = [3, 9, 4, 1, 7]


class Plain(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        found = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        return found.logits  # type: ignore[no-any-return]


class WithPast(nn.Module):
    """As exporters of decoders with a cache do: keys and values in and out, and a mask."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        present = [each for layer in cache.layers for each in (layer.keys, layer.values)]
        return (found.logits, *present)


def export(path: Path, model: nn.Module, arguments: tuple[Any, ...], **options: Any) -> Path:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments, str(path), verbose=False, **options)
    return path


def export_plain(path: Path, model: nn.Module) -> Path:
    length = {1: torch.export.Dim("T", min=2, max=64)}
    ids, positions = torch.arange(8)[None], torch.arange(8)[None]
    return export(
        path, Plain(model), (ids, positions), dynamo=True,
        input_names=["input_ids", "position_ids"],
        output_names=["logits"], dynamic_shapes={"input_ids": length, "position_ids": length},
    )  # fmt: skip


def export_with_past(path: Path, model: Any) -> Path:
    """By tracing; the batch, the tokens and the past may have any length."""
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    past = [torch.randn(2, heads, 5, config.head_dim) for _ in range(2 * layers)]
    ids, mask = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    kinds = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    names = ["input_ids", "attention_mask", *(f"past_key_values.{kind}" for kind in kinds)]
    axes = {name: {0: "batch", 2 if "past" in name else 1: name} for name in names}
    return export(
        path, WithPast(model), (ids, mask, *past), dynamo=False, input_names=names,
        output_names=["logits", *(f"present.{kind}" for kind in kinds)], dynamic_axes=axes,
        opset_version=17,
    )  # fmt: skip


def greedy(model: Any, count: int) -> list[int]:
    tokens = list(PROMPT)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(PROMPT) :]


def said(path: Path, **options: Any) -> list[int]:
    engine = graphwright.compile(path, **options).load(context=32)
    params = graphwright.SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    return engine.generate([PROMPT], params)[0].token_ids


@pytest.mark.parametrize("exported", [export_plain, export_with_past])
def test_a_decoder_that_torch_exported(exported: Any, tmp_path: Path) -> None:
    """Grouped queries stay grouped; what comes out is what the checkpoint's own graph becomes."""
    model = tiny_model("llama")
    path = exported(tmp_path / "model.onnx", model)
    assert said(path) == greedy(model, 6)
    own = graphwright.compile(model).built.plan["kv"]
    assert graphwright.compile(path).built.plan["kv"]["block_bytes"] == own["block_bytes"]


def test_a_plan_is_that_of_the_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export_plain(tmp_path / "model.onnx", tiny_model("mistral"))
    artifact = graphwright.compile(path, quant="w8", check=False).save(tmp_path / "model.gw")
    tables = []
    for arguments in ([str(path), "--quant", "w8"], [str(artifact)]):
        assert main(["plan", *arguments, "--json"]) == 0
        tables.append({**json.loads(capsys.readouterr().out), "model": ""})
    assert tables[0] == tables[1]


def test_windows_softcaps_and_norms_around(tmp_path: Path) -> None:
    model = tiny_model("gemma2")
    path = export_plain(tmp_path / "model.onnx", model)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 48}')
    program = capture_onnx(path)
    assert program.info.max_context == 48 and program.info.name == "model"
    assert said(path) == greedy(model, 6)


def few_bits(draw: np.random.Generator, name: str, n: int, k: int) -> tuple[str, list[Any]]:
    """A weight [n, k] of 4 bits with scales of 16 inputs, and its name."""
    words = draw.integers(0, 256, (n, k // 16, 8)).astype(np.uint8)
    scales = draw.uniform(0.01, 0.05, n * k // 16).astype(np.float32)
    return name, [
        numpy_helper.from_array(words, f"{name}_q4"), numpy_helper.from_array(scales, f"{name}_s")
    ]  # fmt: skip


def genai_model(path: Path) -> Path:
    """A layer in the operators that onnxruntime-genai's builder writes, with weights of 4 bits."""
    draw = np.random.default_rng(0)
    width, heads, kv_heads, dim, hidden, vocabulary = 64, 4, 2, 16, 96, 50
    stored: list[Any] = []
    angle = np.outer(np.arange(64), 100.0 ** (-np.arange(dim // 2) / (dim // 2)))
    table = draw.standard_normal((vocabulary, width)).astype(np.float32)
    constants = {
        "table": table, "cos": np.cos(angle).astype(np.float32),
        "sin": np.sin(angle).astype(np.float32), "one": np.array([1], np.int64),
        "axis": np.array(1, np.int64),
        **{f"norm{i}": draw.uniform(0.5, 1.5, width).astype(np.float32) for i in range(3)},
    }  # fmt: skip
    stored += [numpy_helper.from_array(each, name) for name, each in constants.items()]

    def product(source: str, name: str, n: int, k: int) -> Any:
        _, weights = few_bits(draw, name, n, k)
        stored.extend(weights)
        return helper.make_node(
            "MatMulNBits", [source, f"{name}_q4", f"{name}_s"], [f"{name}_out"],
            domain="com.microsoft", N=n, K=k, bits=4, block_size=16,
        )  # fmt: skip

    def node(kind: str, inputs: list[str], outputs: list[str], domain: str = "", **a: Any) -> Any:
        return helper.make_node(kind, inputs, outputs, domain=domain, **a)

    own = "com.microsoft"
    nodes = [
        node("ReduceSum", ["attention_mask", "one"], ["sum"]),
        node("Sub", ["sum", "one"], ["less"]),
        node("Cast", ["less"], ["lengths"], to=TensorProto.INT32),
        node("Shape", ["attention_mask"], ["shape"]),
        node("Gather", ["shape", "axis"], ["total64"]),
        node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
        node("Gather", ["table", "input_ids"], ["x"]),
        node("SimplifiedLayerNormalization", ["x", "norm0"], ["a"], epsilon=1e-5, axis=-1),
        product("a", "qkv", (heads + 2 * kv_heads) * dim, width),
        node(
            "GroupQueryAttention",
            ["qkv_out", "", "", "past_key_values.0.key", "past_key_values.0.value", "lengths",
             "total", "cos", "sin"],
            ["mixed", "present.0.key", "present.0.value"], own, num_heads=heads,
            kv_num_heads=kv_heads, do_rotary=1,
        ),
        product("mixed", "o", width, heads * dim),
        node("SkipSimplifiedLayerNormalization", ["x", "o_out", "norm1"], ["b", "", "", "r"], own,
             epsilon=1e-5),
        product("b", "gate", hidden, width), product("b", "up", hidden, width),
        node("Sigmoid", ["gate_out"], ["s"]), node("Mul", ["gate_out", "s"], ["silu"]),
        node("Mul", ["silu", "up_out"], ["h"]), product("h", "down", width, hidden),
        node("SkipSimplifiedLayerNormalization", ["r", "down_out", "norm2"], ["c"], own,
             epsilon=1e-5),
        product("c", "head", vocabulary, width), node("Identity", ["head_out"], ["logits"]),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    past = [f"past_key_values.0.{kind}" for kind in ("key", "value")]
    graph = helper.make_graph(
        nodes, "decoder",
        [value("input_ids", TensorProto.INT64, ["b", "s"]),
         value("attention_mask", TensorProto.INT64, ["b", "t"]),
         *(value(name, TensorProto.FLOAT, ["b", kv_heads, "p", dim]) for name in past)],
        [value("logits", TensorProto.FLOAT, ["b", "s", vocabulary]),
         *(value(name.replace("past_key_values", "present"), TensorProto.FLOAT,
                 ["b", kv_heads, "t", dim]) for name in past)],
        stored,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(own, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(
        model, str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=64
    )
    return path


def test_a_decoder_of_onnxruntime_s_own_operators(tmp_path: Path) -> None:
    """Its weights lie beside it, in 4 bits; tokens are those that onnxruntime says."""
    runtime = pytest.importorskip("onnxruntime")
    path = genai_model(tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(path))
    tokens = list(PROMPT)
    for _ in range(6):
        given = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, len(tokens)), np.int64),
            **{f"past_key_values.0.{kind}": np.zeros((1, 2, 0, 16), np.float32)
               for kind in ("key", "value")},
        }  # fmt: skip
        tokens.append(int(session.run(["logits"], given)[0][0, -1].argmax()))
    assert said(path) == tokens[len(PROMPT) :]


@pytest.mark.parametrize(
    "name",
    ["tiny-random-gpt2-fp32/past", "tiny-random-gpt2-fp16-cuda/past", "tiny-qwen35-cuda/decoder",
     "tiny-random-lfm2-fp32/decoder"],
)  # fmt: skip
def test_files_that_others_wrote(name: str) -> None:
    """Logits are those that onnxruntime gives, of half a float16 where it computes in these."""
    runtime = pytest.importorskip("onnxruntime")
    path = shared_path(f"data/onnx/genai_tiny/{name}.onnx")
    session = runtime.InferenceSession(str(path))
    model: Any = onnx_decoder(path)
    kinds = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32,
             "tensor(float16)": np.float16}  # fmt: skip
    ids, places = np.array([[1, 5, 9, 20, 33, 7]]), np.arange(6)[None]
    given = {}
    for each in session.get_inputs():
        past = model._given.past.get(each.name, [])
        known = {"input_ids": ids, "position_ids": places, "attention_mask": np.ones((1, 6))}
        given[each.name] = known.get(each.name, np.zeros(past)).astype(kinds[each.type])
    (want,) = session.run(["logits"], given)
    tokens = [torch.from_numpy(ids)]
    if "position_ids" in inspect.signature(model.forward).parameters:
        tokens.append(torch.from_numpy(places))
    with torch.no_grad(), float32_parameters(model, values=True):
        found = model(*tokens).numpy()
    bound = 1e-3 if want.dtype == np.float16 else 2e-5
    assert np.abs(found - want.astype(np.float32)).max() <= bound * max(1, np.abs(want).max())


def test_a_merged_decoder_takes_the_branch_without_a_past(tmp_path: Path) -> None:
    """Which of two graphs a switch chooses is known before the trace."""
    value, path = helper.make_tensor_value_info, tmp_path / "model.onnx"
    tables = np.random.default_rng(0).standard_normal((2, 20, 20)).astype(np.float32)

    def branch(name: str, table: Any) -> Any:
        node = helper.make_node("Gather", [f"{name}_table", "input_ids"], [f"{name}_y"])
        stored = [numpy_helper.from_array(table, f"{name}_table")]
        return helper.make_graph(
            [node], name, [], [value(f"{name}_y", TensorProto.FLOAT, None)], stored
        )

    choice = helper.make_node(
        "If", ["use_cache_branch"], ["logits"], then_branch=branch("with", tables[0]),
        else_branch=branch("without", tables[1]),
    )  # fmt: skip
    inputs = [
        value("input_ids", TensorProto.INT64, ["b", "s"]),
        value("use_cache_branch", TensorProto.BOOL, [1]),
    ]
    logits = value("logits", TensorProto.FLOAT, ["b", "s", 20])
    onnx.save(helper.make_model(helper.make_graph([choice], "g", inputs, [logits])), str(path))
    ids = torch.tensor([[3, 0, 19]])
    assert torch.equal(onnx_decoder(path)(ids), torch.from_numpy(tables[1])[ids])


def test_a_damaged_config_is_not_overlooked(tmp_path: Path) -> None:
    path = genai_model(tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FrontendError, match=r"config\.json"):
        onnx_decoder(path)


def broken(path: Path, kind: str) -> str:
    """A file that is no decoder, and what is said of it."""
    value = helper.make_tensor_value_info
    x, y = value("x", TensorProto.FLOAT, [None, 4]), value("y", TensorProto.FLOAT, None)
    ids = value("input_ids", TensorProto.INT64, ["b", "s"])
    if kind == "text":
        path.write_text("hello")
        return "is not an ONNX model, or is damaged"
    if kind == "empty":
        path.write_bytes(b"")
        return "is not an ONNX model, or is damaged: it has no nodes"
    if kind == "weights":
        genai_model(path)
        (path.parent / "model.onnx.data").unlink()
        return "the weights of 'table' cannot be read"
    if kind == "outside":
        model = onnx.load(str(genai_model(path)), load_external_data=False)
        for each in model.graph.initializer[0].external_data:
            if each.key == "location":
                each.value = "../../etc/passwd"
        onnx.save(model, str(path))
        return "which is no file beside the model"
    graphs: dict[str, tuple[Any, ...]] = {
        "other": ("Relu", ["x"], [x], "takes x; a decoder takes input_ids"),
        "operator": ("Frobnicate", ["input_ids"], [ids], r"not supported: Frobnicate \(1\)"),
        "state": ("Add", ["input_ids", "x"], [ids, x], r"takes 'x' \[None, 4\], which is neither"),
        "logits": ("Neg", ["input_ids"], [ids], "gives y; a decoder gives logits"),
    }
    operator, inputs, values, message = graphs[kind]
    if kind == "operator":
        y = value("y", TensorProto.FLOAT, ["b", "s", 50])
    node = helper.make_node(operator, inputs, ["y"])
    onnx.save(helper.make_model(helper.make_graph([node], "g", values, [y])), str(path))
    return str(message)


@pytest.mark.parametrize(
    "kind", ["text", "empty", "weights", "outside", "other", "operator", "state", "logits"]
)
def test_files_that_are_no_decoders(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    message = broken(path, kind)
    with pytest.raises(FrontendError, match=message):
        onnx_decoder(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FrontendError, match="there is no file"):
        graphwright.compile(tmp_path / "model.onnx")
