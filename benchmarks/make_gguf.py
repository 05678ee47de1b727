"""Writes random-weight GGUF files of a known shape, quantized by llama.cpp itself.

Runs in the peers' environment (llama-cpp-python, gguf, numpy): make_gguf.py SHAPE DIR Q8_0 Q4_0 F16
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf_layouts import LAYOUTS
from shapes import SHAPES
from tensors import Tensor, tensors

__all__ = ["make_gguf"]


def _write_f16(shape: str, path: Path) -> None:
    config = SHAPES[shape]
    layout = LAYOUTS[config.get("model_type", "llama")]
    random = np.random.default_rng(0)

    def values(each: Tensor) -> np.ndarray:
        if each.values is not None:
            return each.values(each.sizes)
        return random.standard_normal(each.sizes, dtype=np.float32) * np.float32(each.deviation)

    writer = gguf.GGUFWriter(str(path), layout.architecture)
    writer.add_name(shape)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(1)
    writer.add_tokenizer_model("none")
    for key, value in layout.metadata(config).items():
        _ADD[type(value)](writer, f"{layout.architecture}.{key}", value)
    for each in tensors(config):
        block, name = layout.place(each.name)
        writer.add_tensor(block + name, layout.stored(name, values(each)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_ADD: dict[type, Any] = {
    int: gguf.GGUFWriter.add_uint32,
    float: gguf.GGUFWriter.add_float32,
    bool: gguf.GGUFWriter.add_bool,
    list: gguf.GGUFWriter.add_array,
}


def make_gguf(shape: str, directory: Path, kind: str) -> Path:
    """DIR/SHAPE-KIND.gguf; existing files are kept. `kind` is llama.cpp's name, e.g. Q8_0."""
    path = directory / f"{shape}-{kind}.gguf"
    if path.is_file():
        return path
    if kind == "F16":
        _write_f16(shape, path)
        return path
    source = make_gguf(shape, directory, "F16")
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 2
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(path).encode(), ctypes.byref(parameters)
    )
    if code:
        raise SystemExit(f"llama.cpp could not quantize {source} to {kind}: code {code}.")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("kinds", nargs="+")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    for kind in arguments.kinds:
        print(make_gguf(arguments.shape, arguments.directory, kind), flush=True)
