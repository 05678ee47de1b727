"""GGUF files: the same program as of the checkpoint that they were written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from gguf_checkpoints import EPSILON, write_gguf
from tiny_models import save_tiny
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from graphwright.frontend import capture_checkpoint
from graphwright.frontend.gguf_files.blocks import GgufTensor, stored_weights
from graphwright.frontend.gguf_files.decoder import capture_declared_gguf, capture_gguf
from graphwright.frontend.gguf_files.reading import read_gguf
from graphwright.ir import Expression, FrontendError, Program, Weight
from graphwright.ir.printer import format_graph

Families = dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]]
HEADS = {"attention.key_length": 16, "attention.value_length": 16}
WIDE = {"attention.key_length": 256, "attention.value_length": 256}
RMS = {"rms_norm_eps": EPSILON}
OWN_ROPE = {"rope_theta": 50000.0, "rope_type": "default"}
# what it is called here -> a tiny model, the architecture, keys of the header, its configuration
FAMILIES: Families = {
    "llama": ("llama", "llama", {"rope.dimension_count": 16}, RMS),
    "another base": ("llama", "llama", {}, {**RMS, "rope_parameters": OWN_ROPE}),
    "qwen2, tied": ("qwen2", "qwen2", {}, RMS),
    "qwen2, untied": ("qwen2, untied", "qwen2", {}, RMS),
    "qwen3": ("qwen3", "qwen3", HEADS, RMS),
    "experts": ("qwen3-moe", "qwen3moe", HEADS, RMS),
    "gemma2": (
        "gemma2", "gemma2", WIDE, {**RMS, "head_dim": 256, "query_pre_attn_scalar": 256},
    ),
    "gemma3": (
        "gemma3", "gemma3", {**WIDE, "attention.sliding_window_pattern": 2},
        {**RMS, "head_dim": 256, "query_pre_attn_scalar": 256},
    ),
    "phi3 with a window": (
        "phi3", "phi3", {"rope.dimension_count": 16}, {**RMS, "sliding_window": 8},
    ),
    "starcoder2": (
        "starcoder2", "starcoder2", {},
        {"norm_epsilon": EPSILON, "rope_parameters": OWN_ROPE},
    ),
    "stablelm": (
        "stablelm, parallel", "stablelm",
        {"rope.dimension_count": 8, "use_parallel_residual": True},
        {"layer_norm_eps": EPSILON, "partial_rotary_factor": 0.5},
    ),
    "gpt2": ("gpt2", "gpt2", {}, {"layer_norm_epsilon": EPSILON}),
    "bloom": ("bloom", "bloom", {}, {"layer_norm_epsilon": EPSILON}),
}  # fmt: skip
OTHERS: Families = {
    "nemotron": (
        "nemotron", "nemotron",
        {"attention.layer_norm_epsilon": EPSILON, "rope.dimension_count": 8},
        {"intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
         "norm_eps": EPSILON, "partial_rotary_factor": 0.5},
    ),
    "mamba": (
        "mamba", "mamba",
        {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 8,
         "ssm.time_step_rank": 4, "attention.layer_norm_rms_epsilon": EPSILON},
        {"state_size": 8, "time_step_rank": 4, "layer_norm_epsilon": EPSILON},
    ),
    "lfm2": (
        "lfm2", "lfm2",
        {"attention.head_count_kv": [0, 2], "attention.layer_norm_rms_epsilon": EPSILON,
         "tokenizer.ggml.tokens": [f"{i}" for i in range(128)]},
        {"intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
         "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"],
         "norm_eps": EPSILON},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    return save_tiny("llama", directory, hidden_size=128, intermediate_size=192, **RMS)


def check_same(got: Program, wanted: Program) -> None:
    """The same graph and the same weights, but for what 1 + x - 1 and log(exp(x)) round."""
    assert list(got.weights) == list(wanted.weights)
    for name, weight in got.weights.items():
        torch.testing.assert_close(
            weight.load(), wanted.weights[name].load(), rtol=1e-6, atol=3e-7, msg=name
        )
    # which row of a table nobody trains is not what anything computes
    texts = [format_graph(each).replace(", 0)\n", ")\n") for each in (got, wanted)]
    assert texts[0] == texts[1]


def leaves(weight: Weight) -> list[Weight]:
    if not isinstance(weight, Expression):
        return [weight]
    found: list[Weight] = []
    for argument in weight.args:
        several = argument if isinstance(argument, list) else [argument]
        found += [leaf for each in several if isinstance(each, Weight) for leaf in leaves(each)]
    return found


def save_plain(family: str, directory: Path, **settings: Any) -> Path:
    """As `save_tiny`, for families that it has not."""
    common = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": None}
    config = AutoConfig.for_model(family, **common, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_the_same_program_as_of_the_checkpoint(family: str, tmp_path: Path) -> None:
    """Of a header, names and forms that are those of the file alone; no weight is in memory."""
    tiny, architecture, keys, config = {**FAMILIES, **OTHERS}[family]
    save = save_tiny if family in FAMILIES else save_plain
    checkpoint = save(tiny, tmp_path / "model", **config)
    path = write_gguf(
        checkpoint, tmp_path / "model.gguf", "F32", architecture=architecture, keys=keys
    )
    program = capture_gguf(path)
    check_same(program, capture_checkpoint(checkpoint))
    large = [weight for _, weight in program.weights.items() if weight.nbytes > 1 << 12]
    assert len(large) > 4
    for weight in large:
        assert all(isinstance(leaf, GgufTensor) for leaf in leaves(weight)), weight.describe()


KINDS = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "MXFP4"]


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_that_transformers_reads(
    kind: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, and the same logits as of its own model of the same file."""
    path = write_gguf(llama, tmp_path / "model.gguf", kind)
    program = capture_gguf(path)
    # it needs the package for models on several devices, which these are not
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda: True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    assert isinstance(model, nn.Module)
    wanted = {name.replace(".", "_"): value for name, value in model.state_dict().items()}
    compared = [name for name in program.weights if name in wanted]
    assert len(compared) == len(list(model.parameters()))
    for name in compared:
        assert torch.equal(program.weights[name].load(), wanted[name]), name


@pytest.mark.parametrize("kind", sorted(each.name for each in GGMLQuantizationType))
def test_every_type_that_has_values_is_read(kind: str, tmp_path: Path) -> None:
    """Of bytes as they come; what gguf cannot say is refused by name."""
    from gguf import GGUFWriter

    type_ = GGMLQuantizationType[kind]
    values, size = GGML_QUANT_SIZES[type_]
    stored = np.random.default_rng(0).integers(0, 60, (6, 2 * size), dtype=np.uint8)
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("stored", stored, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "model.gguf")
    try:
        wanted = dequantize(stored, type_)
    except NotImplementedError:
        with pytest.raises(FrontendError, match=f"is of the type {kind}, which the package gguf"):
            stored_weights(file)
        return
    weight = stored_weights(file)["stored"]
    assert weight.shape == (6, 2 * values) and weight.dtype == torch.float32
    assert torch.equal(weight.load(), torch.from_numpy(np.array(wanted)))


def test_parts_of_a_split_file(llama: Path, tmp_path: Path) -> None:
    whole = write_gguf(llama, tmp_path / "whole.gguf", "Q8_0")
    first = write_gguf(llama, tmp_path / "model.gguf", "Q8_0", parts=3)
    assert first.name == "model-00001-of-00003.gguf"
    program = capture_gguf(first)
    assert program.info.name == "model"
    check_same(program, capture_gguf(whole))
    with pytest.raises(FrontendError, match="is part 00002 of 3: give the first, "):
        read_gguf(tmp_path / "model-00002-of-00003.gguf")
    (tmp_path / "model-00002-of-00003.gguf").rename(tmp_path / "away.gguf")
    with pytest.raises(FrontendError, match=r"and model-00002-of-00003\.gguf is not beside it"):
        read_gguf(first)


def test_frequencies_that_are_divided(tmp_path: Path) -> None:
    """Scaled rotary embedding, which files have as a factor for each frequency."""
    checkpoint = save_tiny("llama, llama3", tmp_path / "model", **RMS)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    scaled = model.model.rotary_emb.inv_freq
    plain = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = {"rope_freqs.weight": (plain / scaled).numpy()}
    assert factors["rope_freqs.weight"].max() > 7
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "F32", extra=factors)
    check_same(capture_gguf(path), capture_checkpoint(checkpoint))
    factors["rope_freqs.weight"] = np.ones(5, np.float32)
    wrong = write_gguf(checkpoint, tmp_path / "wrong.gguf", "F32", extra=factors)
    with pytest.raises(FrontendError, match="scales 5 frequencies of its rotary embedding"):
        capture_gguf(wrong)


SCALED: dict[str, dict[str, Any]] = {
    "llama, linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    "llama, yarn": {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64,
    },
}


@pytest.mark.parametrize("name", SCALED)
def test_scaled_rotary_embedding(name: str, tmp_path: Path) -> None:
    checkpoint = save_tiny(name, tmp_path / "model", **RMS)
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "F32", keys=SCALED[name])
    check_same(capture_gguf(path), capture_checkpoint(checkpoint))


def test_shapes_alone(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "model.gguf", "Q4_0")
    program = capture_declared_gguf(path)
    assert format_graph(program) == format_graph(capture_gguf(path))
    with pytest.raises(FrontendError, match="are not read for a plan"):
        program.weights["model_layers_0_mlp_up_proj_weight"].load()


# ---- what is refused

HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "an adapter": ({"general.type": "adapter"}, "holds a LoRA adapter and no model: merge it"),
    "eyes": ({"general.type": "mmproj"}, "the part of a model that reads images or sound: give"),
    "words": ({"general.type": "vocab"}, "holds a vocabulary and no weights: give the file of"),
    "a key without a place": (
        {"attention.clamp_kqv": 8.0}, "says llama.attention.clamp_kqv = 8.0, and the config",
    ),
    "another scaling": (
        {"rope.scaling.type": "longrope"}, "says llama.rope.scaling.type = longrope, which",
    ),
    "no heads": ({"attention.head_count": None}, "do not fit its header"),
    "other layers": ({"block_count": 3}, "lacks 9 tensor(s) that its header asks for, the first"),
    "no layers": ({"block_count": None}, "does not say how many layers it has (llama.block_count)"),
    "millions of layers": (
        {"block_count": 10**6}, "says llama.block_count = 1000000, and its files hold 21 tensors",
    ),
    "another width": ({"feed_forward_length": 96}, "tensor(s) of"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HEADERS)
def test_headers_that_are_refused(fault: str, llama: Path, tmp_path: Path) -> None:
    keys, message = HEADERS[fault]
    check_refused(write_gguf(llama, tmp_path / "model.gguf", keys=keys), message)


def check_refused(path: Path, message: str) -> None:
    with pytest.raises(FrontendError) as caught:
        capture_gguf(path)
    text = str(caught.value)
    assert message in text
    assert path.name in text and "\n" not in text and text.endswith(".")


def test_other_files_are_refused(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    write_gguf(llama, path, architecture="llama", without=("blk.0.ffn_up.weight",))
    check_refused(path, "lacks 1 tensor(s) that its header asks for, the first is 'model.layers.0")
    more = {"blk.0.ffn_gate_exps.weight": np.ones((2, 4, 4), np.float32)}
    write_gguf(llama, path, extra=more)
    check_refused(path, "1 tensor(s) of")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    check_refused(path, "bytes) is damaged, cut off, or of a version that is not read: ")
    path.write_bytes(whole[:40])
    check_refused(path, "is damaged, cut off")
    path.write_bytes(b"")
    check_refused(path, "(0 bytes) does not begin like a GGUF file")
    path.write_bytes(b"PK" + whole[2:])
    check_refused(path, "does not begin like a GGUF file")
    check_refused(tmp_path / "absent.gguf", "there is no file")


def test_architectures_that_are_not_read(tmp_path: Path) -> None:
    checkpoint = save_tiny("olmo2", tmp_path / "model")
    path = write_gguf(checkpoint, tmp_path / "model.gguf", architecture="olmo2")
    check_refused(path, "is of the architecture 'olmo2', whose GGUF files transformers ")


def test_a_part_of_a_head_where_all_of_it_turns(tmp_path: Path) -> None:
    checkpoint = save_tiny("qwen2", tmp_path / "model", **RMS)
    keys = {"rope.dimension_count": 8}
    path = write_gguf(checkpoint, tmp_path / "model.gguf", architecture="qwen2", keys=keys)
    check_refused(path, "says qwen2.rope.dimension_count = 8, which Qwen2Config cannot be made")


def test_a_scale_that_the_file_does_not_say(tmp_path: Path) -> None:
    """transformers has a number of its own, which is right for some sizes of a model."""
    checkpoint = save_tiny("gemma2", tmp_path / "model", **RMS)
    path = write_gguf(checkpoint, tmp_path / "model.gguf", architecture="gemma2", keys=HEADS)
    check_refused(path, "does not say what its attention scores are scaled by: transformers would")
