"""llama.cpp through llama-cpp-python, greedy by numpy.   llama_cpp_worker.py GGUF THREADS"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence

import llama_cpp
import numpy as np
from protocol import serve


class LlamaCpp:
    """One GGUF file in one context of 1024 positions."""

    def __init__(self, path: str, threads: int) -> None:
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp could not load {path}.")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = 1024
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.position = 0

    def _decode(self, tokens: Sequence[int]) -> int:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == len(tokens) - 1
        code = llama_cpp.llama_decode(self.context, batch)
        if code:
            raise SystemExit(f"llama_decode returned {code}.")
        self.position += len(tokens)
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def prefill(self, tokens: Sequence[int]) -> int:
        """See Model."""
        llama_cpp.llama_memory_clear(self.memory, False)
        self.position = 0
        return self._decode(tokens)

    def step(self, token: int) -> int:
        """See Model."""
        return self._decode([token])


if __name__ == "__main__":
    begin = time.perf_counter()
    model = LlamaCpp(sys.argv[1], int(sys.argv[2]))
    seconds = time.perf_counter() - begin
    serve(model, model.vocab, seconds, f"llama-cpp-python {llama_cpp.__version__}")
