"""Artifacts without their weights: compiled where there is no GPU, small enough to carry to one.

    python benchmarks/gpu/skeleton.py llama-3.1-8b bf16 FOLDER      # any machine; no checkpoint
    python benchmarks/gpu/run.py --skeletons FOLDER                 # the one with the GPU

The checkpoint that is compiled is a file with a hole: its tensors are zeros that take no space. On
the machine with the GPU random weights are written into the artifact's copy; only sizes matter.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks")]

__all__ = ["fill", "hollow_checkpoint", "skeleton"]


def hollow_checkpoint(shape: str, folder: Path) -> Path:
    """A Hugging Face directory of bfloat16 zeros that take no space on disk."""
    from make_checkpoint import configuration
    from shapes import SHAPES
    from tensors import tensors

    header: dict[str, Any] = {}
    end = 0
    for each in tensors(SHAPES[shape]):
        size = 2 * math.prod(each.sizes)
        header[each.name] = {
            "dtype": "BF16", "shape": list(each.sizes), "data_offsets": [end, end + size],
        }  # fmt: skip
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(configuration(shape)))
    return folder


def skeleton(shape: str, quant: str, folder: Path, chip: str = "sm_90") -> Path:
    """FOLDER/SHAPE-QUANT.gw without weights."""
    from graphwright import golden
    from graphwright.compiler import compile
    from graphwright.runtime.artifact_writer import ArtifactWriter

    whole = ArtifactWriter.add_stream

    def hollow(self: ArtifactWriter, name: str, chunks: Any, size: int) -> None:
        if name == "weights.bin":
            chunks, size = (), 0
        whole(self, name, chunks, size)

    path = folder / f"{shape}-{quant}.gw"
    with (
        tempfile.TemporaryDirectory() as checkpoint,
        patch.object(golden, "golden_tokens", lambda program: None),  # zeros have no next token
        patch.object(ArtifactWriter, "add_stream", hollow),
    ):
        made = compile(
            hollow_checkpoint(shape, Path(checkpoint)), quant=quant, target=f"cuda:{chip}",
            chunk=2048, check=False,
        )  # fmt: skip
        made.save(path)
    return path


def fill(path: Path, target: Path) -> Path:
    """The artifact `target`: that of `path` with random weights, drawn on the GPU."""
    from graphwright.runtime.artifact import Artifact
    from graphwright.runtime.artifact_writer import ArtifactWriter

    hollow = Artifact.open(path, any_cpu=True)
    plan = hollow.json("plan.json")["weights"]
    with ArtifactWriter(target, variants=hollow.manifest.variants) as writer:
        for name in hollow.manifest.entries:
            if name == "weights.bin":
                writer.add_stream(name, _random(plan), int(plan["bytes"]))
            else:
                writer.add(name, hollow.read(name))
    return target


def _random(plan: dict[str, Any]) -> Iterator[memoryview]:
    """The weights region: norms are ones, scales small, all else random."""
    import torch

    end = 0
    for entry in sorted(plan["entries"], key=lambda entry: entry["offset"]):
        if entry["offset"] > end:
            yield memoryview(bytes(entry["offset"] - end))
        dtype = getattr(torch, entry["dtype"])
        count = entry["bytes"] // dtype.itemsize
        if "norm" in entry["name"]:
            values = torch.ones(count, dtype=dtype)
        elif dtype.is_floating_point:
            factor = 0.02 if dtype is torch.bfloat16 else 1e-3
            values = (torch.rand(count, device="cuda") * factor).to(dtype).cpu()
        else:
            low, high = (-127, 128) if dtype is torch.int8 else (0, 256)
            values = torch.randint(low, high, (count,), dtype=dtype, device="cuda").cpu()
        yield memoryview(values.view(torch.uint8).numpy())
        end = entry["offset"] + entry["bytes"]
    if plan["bytes"] > end:
        yield memoryview(bytes(plan["bytes"] - end))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("quant")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(skeleton(options.shape, options.quant, options.folder))
