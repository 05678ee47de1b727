"""Writes random-weight GGUF files of a known shape, quantized by llama.cpp itself.

Runs in the peers' environment (llama-cpp-python, gguf, numpy): make_gguf.py SHAPE DIR Q8_0 Q4_0 F16
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from shapes import SHAPES

__all__ = ["make_gguf"]


def _write_f16(shape: str, path: Path) -> None:
    config = SHAPES[shape]
    hidden, inner, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    kv = hidden // heads * kv_heads
    random = np.random.default_rng(0)

    def tensor(*sizes: int) -> np.ndarray:
        return (random.standard_normal(sizes, dtype=np.float32) * 0.02).astype(np.float16)

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(shape)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocab)
    writer.add_file_type(1)
    writer.add_tokenizer_model("none")
    ones = np.ones(hidden, np.float32)
    writer.add_tensor("token_embd.weight", tensor(vocab, hidden))
    writer.add_tensor("output_norm.weight", ones)
    if not config["tie_word_embeddings"]:
        writer.add_tensor("output.weight", tensor(vocab, hidden))
    for i in range(config["num_hidden_layers"]):
        block = f"blk.{i}."
        writer.add_tensor(block + "attn_norm.weight", ones)
        writer.add_tensor(block + "ffn_norm.weight", ones)
        for name, rows, columns in (
            ("attn_q", hidden, hidden), ("attn_k", kv, hidden), ("attn_v", kv, hidden),
            ("attn_output", hidden, hidden), ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden), ("ffn_down", hidden, inner),
        ):  # fmt: skip
            writer.add_tensor(f"{block}{name}.weight", tensor(rows, columns))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
