"""GGUF files of small checkpoints, written with the gguf package as llama.cpp's converter would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    get_tensor_name_map,
    quantize,
)
from transformers import AutoModelForCausalLM

__all__ = ["EPSILON", "byte_level_vocabulary", "sentencepiece_vocabulary", "write_gguf"]

EPSILON = 2.0**-17  # a float32 number, as headers have them
_KEYS = {
    "max_position_embeddings": "context_length",
    "n_positions": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "intermediate_size": "feed_forward_length",
    "vocab_size": "vocab_size",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "conv_L_cache": "shortconv.l_cache",
}
_WHOLE_KEYS = ("general", "tokenizer", "split")


def write_gguf(
    checkpoint: Path,
    path: Path,
    kind: str | Callable[[str], str] = "F16",
    *,
    architecture: str = "llama",
    keys: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray[Any, Any]] | None = None,
    without: tuple[str, ...] = (),
    parts: int = 1,
) -> Path:
    """Writes the checkpoint directory `checkpoint` to `path`; returns it, or the first of `parts`.

    kind: of the matrices, such as Q4_0, or what gives it for the name of one; where it does not
    divide their inputs, F16. Other tensors are float32. keys: more of the header, whole or below
    the architecture; None leaves one out. extra: tensors that go in as they are.
    """
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tensors = _tensors(model, architecture)
    most = 0 if parts == 1 else -(-len(tensors) // parts)
    writer = GGUFWriter(path, architecture, split_max_tensors=most)
    for key, value in _header(model, architecture, keys or {}).items():
        _add(writer, key, value)
    for name, values in tensors.items():
        if name not in without:
            wanted = kind if isinstance(kind, str) else kind(name)
            _add_tensor(writer, name, values, wanted if _is_quantized(name, values) else "F32")
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if parts == 1 else path.with_name(f"{path.stem}-00001-of-{parts:05d}.gguf")


def sentencepiece_vocabulary(checkpoint: Path) -> dict[str, Any]:
    """The keys of the tokenizer.json of a checkpoint whose vocabulary came from sentencepiece."""
    model = json.loads((checkpoint / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    scores = {"".join(pair): -float(i) for i, pair in enumerate(model["merges"])}
    plain = len([token for token in tokens if token.startswith("<0x")]) + 3
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [scores.get(token, -1e4) for token in tokens],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * (plain - 3) + [1] * (len(tokens) - plain),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def byte_level_vocabulary(checkpoint: Path, split: str = "gpt-2") -> dict[str, Any]:
    """The keys of the tokenizer.json of a checkpoint with byte-level BPE, <s> and </s> first."""
    model = json.loads((checkpoint / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }


def _is_quantized(name: str, values: np.ndarray[Any, Any]) -> bool:
    """Would llama.cpp's quantizer take it? Matrices, but for those that choose experts."""
    return values.ndim > 1 and "_norm" not in name and "gate_inp" not in name


def _add_tensor(writer: GGUFWriter, name: str, values: np.ndarray[Any, Any], kind: str) -> None:
    wanted = GGMLQuantizationType[kind]
    if values.shape[-1] % GGML_QUANT_SIZES[wanted][0]:
        wanted = GGMLQuantizationType.F16
    plain = wanted in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
    writer.add_tensor(name, quantize(values, wanted), raw_dtype=None if plain else wanted)


def _header(model: Any, architecture: str, keys: dict[str, Any]) -> dict[str, Any]:
    config = model.config
    found: dict[str, Any] = {
        f"{architecture}.{key}": getattr(config, name)
        for name, key in _KEYS.items()
        if getattr(config, name, None) is not None
    }
    rope = getattr(config, "rope_parameters", None) or {}
    base = rope.get("rope_theta") or rope.get("full_attention", {}).get("rope_theta")
    if base is not None:
        found[f"{architecture}.rope.freq_base"] = float(base)
    for key, value in keys.items():
        whole = key.split(".")[0] in _WHOLE_KEYS
        found[key if whole else f"{architecture}.{key}"] = value
    return {key: value for key, value in found.items() if value is not None}


def _tensors(model: Any, architecture: str) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of the model by the name that a GGUF file has for it, as that stores it."""
    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names: Any = get_tensor_name_map(number, model.config.num_hidden_layers)
    change = _CHANGES.get(architecture, _as_it_is)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for key, tensor in model.state_dict().items():
        if key in model.all_tied_weights_keys:
            continue
        values = tensor.float().numpy()
        if key.endswith("experts.gate_up_proj"):
            layer, half = key.split(".")[2], values.shape[1] // 2
            found[f"blk.{layer}.ffn_gate_exps.weight"] = values[:, :half]
            found[f"blk.{layer}.ffn_up_exps.weight"] = values[:, half:]
            continue
        name = _name(names, key)
        found[name] = change(name, values, model.config)
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


def _name(names: Any, key: str) -> str:
    for each in (key, key.removeprefix("transformer.")):
        name = names.get_name(each, (".weight", ".bias"))
        if name is not None:
            return f"{name}.weight" if name.endswith("_exps") else str(name)
    raise AssertionError(f"gguf has no name for {key}")


def _as_it_is(name: str, values: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    return values


def _by_neighbours(name: str, values: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    """Rows of a head as pairs of neighbours, where those of the checkpoint are halves apart."""
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
            return halves.swapaxes(1, 2).reshape(values.shape)
    return values


def _one_more(name: str, values: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    return values + 1 if "norm.weight" in name else values


def _transposed(name: str, values: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    return values.T if values.ndim == 2 and name.startswith("blk.") else values


def _squeezed(name: str, values: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    if "conv" in name and values.ndim == 3:
        return values[:, 0]
    return np.asarray(-np.exp(values)) if name.endswith("ssm_a") else values


def _queries_first(name: str, values: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    if "attn_qkv" not in name:
        return values
    heads = values.reshape(config.n_head, 3, -1, *values.shape[1:])
    return heads.swapaxes(0, 1).reshape(values.shape)


_CHANGES: dict[str, Callable[[str, np.ndarray[Any, Any], Any], np.ndarray[Any, Any]]] = {
    "llama": _by_neighbours,
    "gemma2": _one_more,
    "gemma3": _one_more,
    "nemotron": _one_more,
    "gpt2": _transposed,
    "mamba": _squeezed,
    "lfm2": _squeezed,
    "bloom": _queries_first,
}


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
