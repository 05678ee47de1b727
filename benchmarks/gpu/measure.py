"""What is measured on a GPU: the machine's probes, our artifact, and transformers. Seconds each.

Every function waits for the GPU before it reads the clock. Figures are medians; runs of those that
are compared are alternated by run.py, in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["copy_bandwidth", "decode_seconds", "eager_decoder", "matmul_rate", "prefill_seconds",
           "seconds_of"]  # fmt: skip

PROBE_BYTES = 1 << 30


def copy_bandwidth(repeats: int = 20) -> float:
    """Bytes/s that a device-to-device copy reads and writes together."""
    source = torch.empty(PROBE_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * PROBE_BYTES / _median(lambda: target.copy_(source), repeats)


def matmul_rate(size: int = 8192, repeats: int = 20) -> float:
    """bfloat16 operations/s of a square product."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * size**3 / _median(lambda: a @ b, repeats)


def decode_seconds(engine: Engine, sequences: int, prompt: int, tokens: int = 64) -> float:
    """Of one step that decodes a token of each of `sequences` sequences behind `prompt` tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    prompts = [[(7 * i + j) % 1000 for j in range(prompt)] for i in range(sequences)]
    requests = [engine.submit(each, params) for each in prompts]
    while any(not request.generated for request in requests):
        engine.step()
    taken: list[float] = []
    while not all(request.finished for request in requests):
        start = time.perf_counter()
        engine.step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def prefill_seconds(engine: Engine, tokens: int, repeats: int = 5) -> float:
    """From a prompt of `tokens` to its first token."""
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    prompt = [j % 1000 for j in range(tokens)]
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        engine.generate([prompt], params)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def eager_decoder(checkpoint: str, sequences: int, context: int) -> Callable[[], Any]:
    """A decode step of transformers: bfloat16, static cache, torch.compile(reduce-overhead)."""
    from transformers import AutoModelForCausalLM, StaticCache

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model = model.to("cuda").eval()
    cache = StaticCache(config=model.config, max_cache_len=context)
    step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    tokens = torch.ones((sequences, 1), dtype=torch.long, device="cuda")
    position = torch.tensor([context // 2], device="cuda")

    def run() -> Any:
        with torch.no_grad():
            logits = step(
                tokens, position_ids=position.expand(sequences, 1), past_key_values=cache,
                cache_position=position, use_cache=True,
            ).logits  # fmt: skip
            return logits[:, -1].argmax(-1)

    for _ in range(4):
        run()
    return run


def seconds_of(step: Callable[[], Any], repeats: int = 50) -> float:
    """The median of one call, the GPU included."""
    return _median(step, repeats)


def _median(step: Callable[[], Any], repeats: int) -> float:
    step()
    taken = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
