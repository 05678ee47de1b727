"""ONNX Runtime GenAI, greedy.   ort_worker.py FOLDER THREADS"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from protocol import serve


class OnnxRuntime:
    """A folder of its own builder, in a cache of 1024 positions."""

    def __init__(self, folder: str, threads: int) -> None:
        self.folder = Path(folder)
        config = genai.Config(folder)
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = genai.Model(config)
        self.generator: genai.Generator | None = None

    def prefill(self, tokens: Sequence[int]) -> int:
        """See Model."""
        params = genai.GeneratorParams(self.model)
        params.set_search_options(max_length=1024, min_length=1024, do_sample=False)
        self.generator = genai.Generator(self.model, params)
        self.generator.append_tokens(np.array([tokens], np.int32))
        return self.step(0)

    def step(self, token: int) -> int:
        """See Model; the generator feeds back its own tokens."""
        assert self.generator is not None
        self.generator.generate_next_token()
        return int(self.generator.get_next_tokens()[0])


def weight_bytes(model: OnnxRuntime) -> int:
    """Sizes of the initializers, but for those that only a lookup reads."""
    import onnx

    graph = onnx.load(model.folder / "model.onnx", load_external_data=False).graph
    read = {name for node in graph.node if "Gather" not in node.op_type for name in node.input}
    found = 0
    for each in graph.initializer:
        if each.name in read:
            stored = {entry.key: entry.value for entry in each.external_data}
            found += int(stored["length"]) if "length" in stored else len(each.raw_data)
    return found


if __name__ == "__main__":

    def load() -> tuple[OnnxRuntime, int]:
        """The model and the size of its vocabulary."""
        model = OnnxRuntime(sys.argv[1], int(sys.argv[2]))
        config = json.loads((model.folder / "genai_config.json").read_text())
        return model, config["model"]["vocab_size"]

    serve(load, f"onnxruntime-genai {genai.__version__}", weight_bytes)
