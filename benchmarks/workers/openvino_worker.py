"""OpenVINO GenAI's pipeline, greedy.   openvino_worker.py FOLDER THREADS"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from streamed import Generate, serve_streamed


class _Clock(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Notes when each token comes."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        """Called by the pipeline with one new token or some."""
        count = 1 if isinstance(token, int) else len(token)
        self.times.extend([time.perf_counter()] * count)
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is left to do."""


def load() -> tuple[Generate, int, int]:
    """See serve_streamed."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    pipeline = openvino_genai.LLMPipeline(
        folder, "CPU", INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY"
    )
    config = json.loads((folder / "config.json").read_text())

    def generate(prompt: list[int], count: int) -> list[float]:
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens = count
        settings.ignore_eos = True
        settings.do_sample = False
        settings.apply_chat_template = False
        ids, clock = np.array([prompt], np.int64), _Clock()
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        pipeline.generate(inputs, settings, clock)
        if len(clock.times) != count:
            raise SystemExit(f"{count} tokens were asked for, {len(clock.times)} came.")
        return clock.times

    table = config["vocab_size"] * config["hidden_size"]  # int8 in both formats
    total = (folder / "openvino_model.bin").stat().st_size
    return generate, config["vocab_size"], total - (0 if config["tie_word_embeddings"] else table)


if __name__ == "__main__":
    version = openvino_genai.__version__.split("-")[0]
    serve_streamed(load, f"openvino-genai {version}")
