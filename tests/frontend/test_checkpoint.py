"""Capture of checkpoint directories: weights stay in their files, faults are one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_data import shared_path
from tiny_models import random_tokens, save_tiny

from graphwright.frontend import capture_checkpoint
from graphwright.ir import CheckpointTensor, Expression, FrontendError, Program, Weight
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    return save_tiny("llama", directory, num_layers=1)


def eager(directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(tokens[None]).logits[0]
    return logits


def check_numbers(program: Program, directory: Path) -> None:
    tokens = random_tokens(9)
    got = run_program(program, {"tokens": tokens, "positions": torch.arange(9)})
    check_close(got, eager(directory, tokens), "exact")


def in_files(program: Program) -> dict[str, Weight]:
    """The weights, without what is computed when the module is built."""
    weights = {name: program.weights[name] for name in program.weights}
    return {name: weight for name, weight in weights.items() if "inv_freq" not in name}


def test_weights_are_references_into_the_files(llama: Path) -> None:
    program = capture_checkpoint(llama)
    assert program.info.name == "tiny"
    assert program.info.max_context == 256
    assert all(isinstance(weight, CheckpointTensor) for weight in in_files(program).values())
    weight = program.weights["model_layers_0_mlp_up_proj_weight"]
    assert weight.describe() == "model.safetensors:model.layers.0.mlp.up_proj.weight"
    check_numbers(program, llama)


def test_bfloat16_weights_are_cast_when_they_are_loaded(tmp_path: Path) -> None:
    """Tied weights too; and names that differ from the module's by a prefix."""
    directory = save_tiny("bloom", tmp_path / "bloom", num_layers=1, dtype=torch.bfloat16)
    path = directory / "model.safetensors"
    renamed = {k.removeprefix("transformer."): v for k, v in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})
    program = capture_checkpoint(str(directory))
    for weight in in_files(program).values():
        assert isinstance(weight, Expression)
        assert weight.dtype is torch.float32
        assert weight.describe().startswith("_to_copy(model.safetensors:")
    check_numbers(program, directory)


def test_a_cast_between_file_and_model_is_followed(llama: Path, tmp_path: Path) -> None:
    """config.json says bfloat16, the file holds float32: the values are the rounded ones."""
    directory = copy(llama, tmp_path, configure(dtype="bfloat16"))
    program = capture_checkpoint(directory)
    weight = program.weights["lm_head_weight"]
    assert weight.describe() == "_to_copy(_to_copy(model.safetensors:lm_head.weight))"
    stored = load_file(directory / "model.safetensors")["lm_head.weight"]
    assert torch.equal(weight.load(), stored.bfloat16().float())


def test_shards(llama: Path, tmp_path: Path) -> None:
    directory = copy(llama, tmp_path, shard)
    program = capture_checkpoint(directory)
    files = {
        w.file.path.name for w in in_files(program).values() if isinstance(w, CheckpointTensor)
    }
    assert files == {"a.safetensors", "b.safetensors"}
    check_numbers(program, directory)


@pytest.mark.shared
def test_a_trained_model() -> None:
    directory = shared_path("models/stories260K-hf")
    program = capture_checkpoint(directory)
    tokens = random_tokens(20, vocab_size=program.info.vocab_size)
    got = run_program(program, {"tokens": tokens, "positions": torch.arange(20)})
    check_close(got, eager(directory, tokens), "exact")


# ---- faults


def copy(source: Path, folder: Path, change: Callable[[Path], Any]) -> Path:
    directory = folder / "broken"
    shutil.copytree(source, directory)
    change(directory)
    return directory


def configure(**values: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def edit(**tensors: torch.Tensor | None) -> Callable[[Path], None]:
    """Replaces tensors of the file; None removes one. `__` stands for a dot."""

    def change(directory: Path) -> None:
        path = directory / "model.safetensors"
        stored = load_file(path)
        for name, tensor in tensors.items():
            stored.pop(name.replace("__", "."))
            if tensor is not None:
                stored[name.replace("__", ".")] = tensor
        save_file(stored, path, metadata={"format": "pt"})

    return change


def shard(directory: Path) -> None:
    stored = load_file(directory / "model.safetensors")
    files = {name: "ab"[i % 2] + ".safetensors" for i, name in enumerate(sorted(stored))}
    for file in set(files.values()):
        part = {name: stored[name] for name in stored if files[name] == file}
        save_file(part, directory / file, metadata={"format": "pt"})
    (directory / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_and_lose_one(directory: Path) -> None:
    shard(directory)
    (directory / "b.safetensors").unlink()


def shard_and_lose_a_tensor(directory: Path) -> None:
    shard(directory)
    stored = load_file(directory / "a.safetensors")
    stored.pop("lm_head.weight")
    save_file(stored, directory / "a.safetensors", metadata={"format": "pt"})


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


up = "model__layers__0__mlp__up_proj__weight"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json"),
    "bad json": (lambda d: (d / "config.json").write_text('{"a":'), "is not valid JSON"),
    "json list": (lambda d: (d / "config.json").write_text("[]"), "must hold a JSON object"),
    "no type": (lambda d: (d / "config.json").write_text("{}"), "has no 'model_type'"),
    "unknown type": (configure(model_type="nosuch"), "model type 'nosuch'"),
    "no decoder": (configure(model_type="vit"), "is no decoder language model"),
    "own code": (
        configure(model_type="mine", auto_map={"AutoModelForCausalLM": "m.M"}),
        "pass trust_remote_code=True",
    ),
    "quantized by an unknown method": (
        configure(quantization_config={"quant_method": "hqq"}),
        "is quantized already, by method 'hqq', which is not read; GPTQ, AWQ",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
    "pickle": (pickled_only, "'pytorch_model.bin' only, a pickle file"),
    "cut off": (truncate, "is damaged or cut off"),
    "lost shard": (shard_and_lose_one, "names 'b.safetensors', which is not in"),
    "lost tensor of a shard": (shard_and_lose_a_tensor, "the first is 'lm_head.weight'"),
    "missing tensor": (edit(**{up: None}), "lacks 1 tensor(s) that its config.json asks for"),
    "a wrong setting": (configure(hidden_size="x"), "'hidden_size' expected int, got str"),
    "an unknown setting": (configure(hidden_act="nosuch"), "it does not know 'nosuch'"),
    "wrong shape": (edit(**{up: torch.zeros(3, 4)}), "is [3, 4] in the file, [128, 64] in"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(fault: str, llama: Path, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    directory = copy(llama, tmp_path, change)
    with pytest.raises(FrontendError) as caught:
        capture_checkpoint(directory)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


def test_a_weight_that_is_not_a_number_is_named(llama: Path, tmp_path: Path) -> None:
    broken = torch.zeros(128, 64)
    broken[3, 4], broken[5, 6] = float("nan"), float("inf")
    with pytest.raises(FrontendError) as caught:
        capture_checkpoint(copy(llama, tmp_path, edit(**{up: broken})))
    assert str(caught.value) == (
        "the model's own logits for 1 token(s) are NaN: 2 of 8192 numbers of its weight "
        "'model_layers_0_mlp_up_proj_weight' are NaN or infinite."
    )


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FrontendError, match="there is no directory"):
        capture_checkpoint(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(FrontendError, match="is a file; expected a checkpoint directory"):
        capture_checkpoint(tmp_path / "file")


def test_transformers_is_silent(
    llama: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(FrontendError):
        capture_checkpoint(copy(llama, tmp_path, edit(**{up: torch.zeros(3, 4)})))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
