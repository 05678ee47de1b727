"""The benchmarks' checkpoints are what transformers and llama.cpp want of their architectures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ("shapes", "tensors", "make_checkpoint", "gguf_layouts")
SHAPES = ("tinyllama-1.1b", "qwen3-0.6b", "mamba-790m", "qwen3.5-0.8b")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def cut(config: dict[str, Any]) -> dict[str, Any]:
    """Four layers of a small vocabulary: one of each kind of layer at least."""
    small = {**config, "num_hidden_layers": 4, "vocab_size": 256}
    if "layer_types" in config:
        small["layer_types"] = config["layer_types"][:4]
    return small


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_are_those_of_transformers(modules: dict[str, Any], shape: str) -> None:
    fields = modules["make_checkpoint"].configuration(shape)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == fields["architectures"][0]
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if fields["tie_word_embeddings"]:
        del wanted["lm_head.weight"]
    found = modules["tensors"].tensors(modules["shapes"].SHAPES[shape])
    assert {each.name: each.sizes for each in found} == wanted


@pytest.mark.parametrize("shape", ("mamba-790m", "qwen3.5-0.8b"))
def test_a_recurrent_checkpoint_loads_and_stays_finite(
    modules: dict[str, Any], shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = modules["shapes"].SHAPES
    monkeypatch.setitem(shapes, shape, cut(shapes[shape]))
    folder = modules["make_checkpoint"].make_checkpoint(shape, tmp_path / shape)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.inference_mode():
        logits = model(torch.arange(32)[None]).logits[0]
    assert logits.isfinite().all() and (logits.std(dim=-1) > 0.1).all()


@pytest.mark.parametrize("shape", ("tinyllama-1.1b", "mamba-790m", "qwen3.5-0.8b"))
def test_every_tensor_has_a_place_in_a_gguf_file(modules: dict[str, Any], shape: str) -> None:
    config = cut(modules["shapes"].SHAPES[shape])
    layout = modules["gguf_layouts"].LAYOUTS[config.get("model_type", "llama")]
    found = {}
    for each in modules["tensors"].tensors(config):
        block, name = layout.place(each.name)
        values = np.ones(each.sizes, np.float32) if each.values is None else each.values(each.sizes)
        found[block + name] = layout.stored(name, values)
    assert len(found) == len(list(modules["tensors"].tensors(config)))
    norms = [values for name, values in found.items() if "norm" in name]
    assert norms and all((values == 1).all() for values in norms)
    matrices = {name: values for name, values in found.items() if values.ndim > 1}
    wide = {name for name, values in matrices.items() if values.dtype == np.float32}
    assert all("ssm_conv1d" in name or "ssm_a" in name for name in wide)
    if shape != "tinyllama-1.1b":
        assert found["blk.0.ssm_a"].max() == -1 and found["blk.0.ssm_a"].dtype == np.float32
        assert found["blk.0.ssm_conv1d.weight"].ndim == 2 and "blk.0.ssm_dt.bias" in found
