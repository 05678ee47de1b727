"""CTranslate2's generator, greedy.   ctranslate2_worker.py FOLDER THREADS"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ctranslate2
from streamed import Generate, serve_streamed


def load() -> tuple[Generate, int, int]:
    """See serve_streamed."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    generator = ctranslate2.Generator(
        str(folder), device="cpu", inter_threads=1, intra_threads=threads, compute_type="int8"
    )
    vocabulary = json.loads((folder / "vocabulary.json").read_text())

    def generate(prompt: list[int], count: int) -> list[float]:
        pieces = [vocabulary[each] for each in prompt]
        steps = generator.generate_tokens(
            pieces, max_length=count, min_length=count, sampling_topk=1, end_token=[]
        )
        return [time.perf_counter() for _ in steps][:count]

    return generate, len(vocabulary), _weight_bytes(folder, len(vocabulary))


def _weight_bytes(folder: Path, vocab: int) -> int:
    """The model file without the input embedding (int8 with one scale a row), unless it is tied."""
    hidden, tied = _source(folder)
    return (folder / "model.bin").stat().st_size - (0 if tied else vocab * (hidden + 4))


def _source(folder: Path) -> tuple[int, bool]:
    """Hidden size and tied embeddings of the checkpoint that the folder's name begins with."""
    shape = folder.name.split("-ctranslate2-")[0]
    config = json.loads((folder.parent / shape / "config.json").read_text())
    return config["hidden_size"], config["tie_word_embeddings"]


if __name__ == "__main__":
    serve_streamed(load, f"ctranslate2 {ctranslate2.__version__}")
