"""Writes a random-weight bf16 checkpoint: python benchmarks/make_checkpoint.py SHAPE DIR

Tensors are made and written one at a time, so that the largest shape needs little memory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from shapes import SHAPES
from tensors import tensors

__all__ = ["configuration", "make_checkpoint"]


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

    for each in tensors(config):
        if each.values is not None:
            values = torch.from_numpy(each.values(each.sizes))
        else:
            values = torch.randn(each.sizes, generator=generator, device=device) * each.deviation
        shard[each.name] = values.to(torch.bfloat16).cpu()
        total += shard[each.name].nbytes
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
    name = kind.removesuffix("_text").capitalize()
    return {**config, "architectures": [f"{name}ForCausalLM"], "model_type": kind,
            "hidden_act": "silu", "torch_dtype": "bfloat16"}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    print(make_checkpoint(arguments.shape, arguments.directory))
