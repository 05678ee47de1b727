"""LoRA adapters that PEFT saved are merged into the weights, as PEFT itself computes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft_adapters import base_model
from peft_adapters import save_adapter as adapter
from safetensors.torch import load_file, save_file
from tiny_models import random_tokens, save_tiny

import graphwright
from graphwright.__main__ import main
from graphwright.frontend import capture_checkpoint
from graphwright.ir import Expression, FrontendError
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close

QKV = ["q_proj", "k_proj", "v_proj"]


def check(base: Path, *adapters: Path) -> None:
    """The program computes what PEFT does, and that is not what the base does."""
    program = capture_checkpoint(base, lora=adapters)
    model = base_model(base)
    tokens = random_tokens(9)
    with torch.no_grad():
        before = model(tokens[None]).logits[0]
        for each in adapters:
            model = peft.PeftModel.from_pretrained(model, each).merge_and_unload()
        want = model(tokens[None]).logits[0]
    got = run_program(program, {"tokens": tokens, "positions": torch.arange(9)})
    check_close(got, want, "reassociating")
    assert (before - want).abs().max() > 0.1 * want.std()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("base") / "llama", num_layers=2)


@pytest.fixture(scope="module")
def queries(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(llama, tmp_path_factory.mktemp("adapter") / "queries", target_modules=QKV)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": QKV, "use_dora": True},
        {"target_modules": QKV, "bias": "lora_only"},
        {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
        {
            "target_modules": ["q_proj", "down_proj"],
            "use_rslora": True,
            "rank_pattern": {"down_proj": 8},
            "alpha_pattern": {"layers.1.mlp.down_proj": 3},
        },
    ],
    ids=["linears", "dora", "biases", "tables", "patterns"],
)
def test_it_computes_what_peft_does(config: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    check(llama, adapter(llama, tmp_path / "adapter", **config))


@pytest.mark.parametrize("dora", [False, True])
def test_weights_that_are_stored_turned(dora: bool, tmp_path: Path) -> None:
    base = save_tiny("gpt2", tmp_path / "base")
    targets: dict[str, Any] = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    check(base, adapter(base, tmp_path / "adapter", use_dora=dora, **targets))


def test_several_are_merged_one_after_the_other(llama: Path, queries: Path, tmp_path: Path) -> None:
    second = adapter(llama, tmp_path / "second", 2, target_modules=["q_proj", "up_proj"])
    check(llama, queries, second)


def test_nothing_is_read_before_it_is_packed(llama: Path, queries: Path) -> None:
    program = capture_checkpoint(llama, lora=[queries])
    weight = program.weights["model_layers_0_self_attn_q_proj_weight"]
    assert isinstance(weight, Expression)
    assert "adapter_model.safetensors:base_model.model.model.layers.0" in weight.describe()
    untouched = program.weights["model_layers_0_mlp_up_proj_weight"]
    assert untouched.describe() == "model.safetensors:model.layers.0.mlp.up_proj.weight"


def test_weights_keep_their_type(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base", num_layers=1, dtype=torch.bfloat16)
    program = capture_checkpoint(
        base, lora=[adapter(base, tmp_path / "adapter", target_modules=QKV)]
    )
    name = "model_layers_0_self_attn_q_proj_weight"
    assert program.weights[name].dtype == capture_checkpoint(base).weights[name].dtype


def test_the_command_line_and_what_the_file_keeps(
    llama: Path, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned.gw"
    assert main(["compile", str(llama), "--lora", str(queries), "-o", str(out), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert "lora         queries, sha256 " in capsys.readouterr().out
    logits = graphwright.load(out, max_sequences=1).logits(random_tokens(9).tolist())
    model = peft.PeftModel.from_pretrained(base_model(llama), queries)
    with torch.no_grad():
        want = model(random_tokens(9)[None]).logits[0]
    check_close(torch.from_numpy(logits), want, "reassociating")


def broken(queries: Path, directory: Path, config: dict[str, Any], renamed: str = "") -> Path:
    """A copy with other settings, and with tensors of layer 0 called as if of `renamed`."""
    directory.mkdir()
    settings = json.loads((queries / "adapter_config.json").read_text()) | config
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    tensors = load_file(queries / "adapter_model.safetensors")
    if renamed:
        tensors = {name.replace("layers.0.", renamed): each for name, each in tensors.items()}
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("config", "renamed", "message"),
    [
        ({"peft_type": "IA3"}, "", "is an adapter of type IA3; only LORA is merged"),
        ({"target_parameters": ["x"]}, "", "changes single parameters"),
        ({}, "layers.7.", r"has 3 of its 6 tensors for weights that this model does not have, the"),
        ({}, "lora_.0.", "which is none of the tensors of LoRA and DoRA"),
    ],
)
def test_what_cannot_be_merged(
    config: dict[str, Any], renamed: str, message: str, llama: Path, queries: Path, tmp_path: Path
) -> None:
    wrong = broken(queries, tmp_path / "wrong", config, renamed)
    if renamed == "lora_.0.":
        tensors = load_file(wrong / "adapter_model.safetensors")
        save_file(
            {**tensors, "base_model.model.x.lora_C": torch.ones(1)},
            wrong / "adapter_model.safetensors",
        )
    with pytest.raises(FrontendError, match=message):
        capture_checkpoint(llama, lora=[wrong])


def test_an_adapter_of_another_size_or_half_of_one(
    llama: Path, queries: Path, tmp_path: Path
) -> None:
    wide = save_tiny("llama", tmp_path / "wide", num_layers=2, hidden_size=128)
    with pytest.raises(FrontendError, match=r"by \[\d+, 4\] times \[4, 64\], and the model has"):
        capture_checkpoint(wide, lora=[queries])
    half = broken(queries, tmp_path / "half", {})
    tensors = load_file(half / "adapter_model.safetensors")
    kept = {name: each for name, each in tensors.items() if "lora_B" not in name}
    save_file(kept, half / "adapter_model.safetensors")
    with pytest.raises(FrontendError, match="with A of the two factors A and B"):
        capture_checkpoint(llama, lora=[half])
    cut = broken(queries, tmp_path / "cut", {}) / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(FrontendError, match="is damaged or cut off"):
        capture_checkpoint(llama, lora=[cut.parent])


def test_one_of_two_tied_tables_cannot_change_alone(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base", num_layers=1, tie_word_embeddings=True)
    tuned = adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(FrontendError, match="one of the two cannot change alone"):
        capture_checkpoint(base, lora=[tuned])


def test_only_checkpoints_take_adapters(tmp_path: Path, queries: Path, llama: Path) -> None:
    with pytest.raises(FrontendError, match="not to an ONNX or GGUF file or a module"):
        graphwright.compile(base_model(llama), lora=queries)
    with pytest.raises(FrontendError, match="expected a LoRA adapter as PEFT saves it"):
        graphwright.compile(llama, lora=tmp_path)
