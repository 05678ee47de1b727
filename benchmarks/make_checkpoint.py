"""Writes a random-weight bf16 checkpoint: python benchmarks/make_checkpoint.py SHAPE DIR

Tensors are made and written one at a time, so that the largest shape needs little memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from shapes import SHAPES

__all__ = ["configuration", "make_checkpoint", "tensor_shapes"]


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the checkpoint's tensors, layer by layer."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = (head * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, shape in (("q", (q, hidden)), ("k", (kv, hidden)), ("v", (kv, hidden)),
                            ("o", (hidden, q))):  # fmt: skip
            yield f"{layer}.self_attn.{name}_proj.weight", shape
        if config.get("model_type") == "qwen3":
            yield f"{layer}.self_attn.q_norm.weight", (head,)
            yield f"{layer}.self_attn.k_norm.weight", (head,)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)),
                            ("down", (hidden, inner))):  # fmt: skip
            yield f"{layer}.mlp.{name}_proj.weight", shape
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def make_checkpoint(shape: str, directory: Path, seed: int = 0) -> Path:
    """A Hugging Face directory with one shard per four layers. Existing directories are kept."""
    if (directory / "config.json").is_file():
        return directory
    config = SHAPES[shape]
    directory.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    total = number = 0

    def flush() -> None:
        nonlocal number, shard
        if shard:
            number += 1
            name = f"model-{number:05d}.safetensors"
            save_file(shard, directory / name, metadata={"format": "pt"})
            index.update(dict.fromkeys(shard, name))
            shard = {}

    for name, sizes in tensor_shapes(config):
        if len(sizes) == 1:
            shard[name] = torch.ones(sizes, dtype=torch.bfloat16)
        else:
            values = torch.randn(sizes, generator=generator, device=device) * 0.02
            shard[name] = values.to(torch.bfloat16).cpu()
        total += shard[name].nbytes
        if sum(tensor.nbytes for tensor in shard.values()) > 400e6:
            flush()
    flush()
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    (directory / "model.safetensors.index.json").write_text(text)
    (directory / "config.json").write_text(json.dumps(configuration(shape), indent=1))
    return directory


def configuration(shape: str) -> dict[str, Any]:
    """The checkpoint's config.json."""
    config = SHAPES[shape]
    kind = config.get("model_type", "llama")
    return {**config, "architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind,
            "hidden_act": "silu", "torch_dtype": "bfloat16"}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    print(make_checkpoint(arguments.shape, arguments.directory))
