"""transformers on CPU: eager, the decode step under torch.compile with a static cache, or prefill
and decode under torch.compile with a growing cache and a backend.

transformers_worker.py DIRECTORY THREADS eager|compile|BACKEND[:QUANT] float32|bfloat16
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from protocol import serve
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache


class Transformers:
    """A checkpoint run by transformers; greedy. mode: as above."""

    def __init__(self, directory: str, mode: str, dtype: torch.dtype) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        parameters = inspect.signature(self.model.forward).parameters
        self.cache_name = "cache_params" if "cache_params" in parameters else "past_key_values"
        self.compiled = mode == "compile"
        backend, _, quant = mode.partition(":")
        self.prefill_forward = self.decode_forward = self.model.forward
        if self.compiled:
            self.decode_forward = torch.compile(self.model.forward, dynamic=False)
        elif mode != "eager":
            options: dict[str, Any] = {"options": {"quant": quant}} if quant else {}
            self.decode_forward = torch.compile(self.model.forward, backend=backend, **options)
            self.prefill_forward = self.decode_forward
        self.cache: DynamicCache | StaticCache = self._new_cache()
        self.position = 0

    def _new_cache(self) -> DynamicCache | StaticCache:
        if self.compiled:
            return StaticCache(config=self.model.config, max_cache_len=1024)
        return DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def _call(self, tokens: torch.Tensor) -> int:
        count = tokens.shape[1]
        forward = self.decode_forward if count == 1 else self.prefill_forward
        positions = torch.arange(self.position, self.position + count)[None]
        logits = forward(input_ids=tokens, position_ids=positions, use_cache=True,
                         logits_to_keep=1, **{self.cache_name: self.cache}).logits  # fmt: skip
        self.position += count
        return int(logits[0, -1].argmax())

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int]) -> int:
        """See Model."""
        if isinstance(self.cache, StaticCache):
            self.cache.reset()
        else:
            self.cache = self._new_cache()
        self.position = 0
        return self._call(torch.tensor([list(tokens)]))

    def step(self, token: int) -> int:
        """See Model."""
        return self._call(torch.tensor([[token]]))


def weight_bytes(model: Transformers) -> int:
    """Sizes of the parameters, without the input embedding unless it is the head too."""
    module = model.model
    total = sum(p.nbytes for p in module.parameters())
    embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    return total if embedding is head else total - embedding.nbytes


if __name__ == "__main__":
    directory, threads, mode, dtype = sys.argv[1:5]
    torch.set_num_threads(int(threads))
    transformers.utils.logging.disable_progress_bar()

    def load() -> tuple[Transformers, int]:
        """The model, compiled if asked, and the size of its vocabulary."""
        model = Transformers(directory, mode, getattr(torch, dtype))
        if mode != "eager":
            for length in (128, 127):  # graphs for any length are made at the second
                token = model.prefill(range(1, 1 + length))
                for _ in range(3):
                    token = model.step(token)
        return model, model.model.config.vocab_size

    version = f"torch {torch.__version__}, transformers {transformers.__version__}"
    serve(load, version, weight_bytes)
