"""llama.cpp through llama-cpp-python, greedy by numpy.   llama_cpp_worker.py GGUF THREADS"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import llama_cpp
import numpy as np
from protocol import serve

SEQUENCES, CONTEXT, CHUNK = 8, 512, 512


class LlamaCpp:
    """One GGUF file in two contexts: one sequence of 1024 positions, and SEQUENCES of CONTEXT."""

    def __init__(self, path: str, threads: int) -> None:
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.path, self.threads = path, threads
        self.model = self._load()
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)
        self.one = self._context(self.model, 1024, 1)
        self.many = None
        self.positions = [0]

    def _load(self, *, repacked: bool = True) -> object:
        """The model. repacked: may weights be laid out anew, as AMX and others want them?"""
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = repacked
        model = llama_cpp.llama_model_load_from_file(self.path.encode(), parameters)
        if not model:
            raise SystemExit(f"llama.cpp could not load {self.path}.")
        return model

    def _context(self, model: object, positions: int, sequences: int) -> object:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = positions
        parameters.n_batch = parameters.n_ubatch = CHUNK
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.n_seq_max = sequences
        return llama_cpp.llama_init_from_model(model, parameters)

    def _run(
        self, context: object, rows: Sequence[tuple[int, int]], wanted: Sequence[int]
    ) -> list[int]:
        """One llama_decode over (token, sequence) rows; the next token after each wanted row."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, sequence) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = self.positions[sequence]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = 0
            self.positions[sequence] += 1
        for i in wanted:
            batch.logits[i] = 1
        code = llama_cpp.llama_decode(context, batch)
        if code:
            raise SystemExit(f"llama_decode returned {code}.")
        logits = (llama_cpp.llama_get_logits_ith(context, i) for i in wanted)
        return [int(np.ctypeslib.as_array(row, shape=(self.vocab,)).argmax()) for row in logits]

    def prefill(self, tokens: Sequence[int]) -> int:
        """See Model."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.one), False)
        self.positions = [0]
        return self._run(self.one, [(token, 0) for token in tokens], [len(tokens) - 1])[0]

    def step(self, token: int) -> int:
        """See Model."""
        return self._run(self.one, [(token, 0)], [0])[0]

    def prefill_batch(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """See BatchModel."""
        if self.many is None:
            model = self.model
            if llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model):
                # of such a batch, its products with AMX take the first sequence alone, or crash
                model = self._load(repacked=False)
            self.many = self._context(model, SEQUENCES * CONTEXT, SEQUENCES)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.many), False)
        self.positions = [0] * len(prompts)
        return [
            self._run(self.many, [(token, n) for token in prompt], [len(prompt) - 1])[0]
            for n, prompt in enumerate(prompts)
        ]

    def step_batch(self, tokens: Sequence[int]) -> list[int]:
        """See BatchModel."""
        return self._run(self.many, [(t, n) for n, t in enumerate(tokens)], range(len(tokens)))


def weight_bytes(model: LlamaCpp) -> int:
    """Sizes of the tensors, without the input embedding unless it is the head too."""
    import gguf

    tensors = {each.name: int(each.n_bytes) for each in gguf.GGUFReader(model.path).tensors}
    tied = "output.weight" not in tensors
    return sum(size for name, size in tensors.items() if tied or name != "token_embd.weight")


if __name__ == "__main__":

    def load() -> tuple[LlamaCpp, int]:
        """The model and the size of its vocabulary."""
        model = LlamaCpp(sys.argv[1], int(sys.argv[2]))
        return model, model.vocab

    serve(load, f"llama-cpp-python {llama_cpp.__version__}", weight_bytes)
