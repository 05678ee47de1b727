"""Two checkpoints of which one guesses all that the other says:
python benchmarks/make_draft.py SHAPE LAYERS DIRECTORY

DIRECTORY/model has random weights in a shape, and its layers behind the first LAYERS add nothing;
they cost what they cost. DIRECTORY/draft is the same without them. So a draft can be timed that is
always right, which random weights would never let it be.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from make_checkpoint import make_checkpoint
from safetensors.torch import load_file, save_file
from shapes import SHAPES

__all__ = ["make_draft"]

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_OUTPUTS = ("o_proj.weight", "down_proj.weight")
Changed = Callable[[str, torch.Tensor], torch.Tensor | None]


def make_draft(shape: str, layers: int, directory: Path) -> tuple[Path, Path]:
    """The paths of the model and the draft. Existing ones are kept."""
    whole = make_checkpoint(shape, directory / "random")

    def is_behind(name: str) -> bool:
        match = _LAYER.search(name)
        return match is not None and int(match[1]) >= layers

    def silenced(name: str, tensor: torch.Tensor) -> torch.Tensor:
        silent = is_behind(name) and name.endswith(_OUTPUTS)
        return torch.zeros_like(tensor) if silent else tensor

    def cut(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        return None if is_behind(name) else tensor

    count = SHAPES[shape]["num_hidden_layers"]
    assert 0 < layers < count, f"{shape} has {count} layers: the draft must have fewer"
    model = _copy(whole, directory / "model", count, silenced)
    return model, _copy(whole, directory / "draft", layers, cut)


def _copy(source: Path, out: Path, layers: int, changed: Changed) -> Path:
    if (out / "config.json").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    found: dict[str, str] = {}
    for file in sorted(set(index["weight_map"].values())):
        tensors = {name: changed(name, each) for name, each in load_file(source / file).items()}
        kept = {name: each for name, each in tensors.items() if each is not None}
        if kept:
            save_file(kept, out / file, metadata={"format": "pt"})
            found |= dict.fromkeys(kept, file)
    text = json.dumps({"metadata": {}, "weight_map": found}, indent=1)
    (out / "model.safetensors.index.json").write_text(text)
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}, indent=1))
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("layers", type=int)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    print(*make_draft(arguments.shape, arguments.layers, arguments.directory), sep="\n")
