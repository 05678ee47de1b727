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
           "sdpa_seconds", "seconds_of"]  # fmt: skip

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


def sdpa_seconds(shape: str, tokens: int = 2048) -> float:
    """Of torch's causal flash attention over one sequence of `tokens`, with the shape's heads."""
    from shapes import SHAPES
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    config = SHAPES[shape]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim", config["hidden_size"] // heads)
    q, k, v = (
        torch.randn(1, each, tokens, dim, dtype=torch.bfloat16, device="cuda")
        for each in (heads, kv, kv)
    )
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        many = 20  # one alone is shorter than what a launch costs
        return seconds_of(
            lambda: [
                scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                for _ in range(many)
            ]
        ) / many  # fmt: skip


def eager_decoder(
    shape: str, sequences: int, context: int, most: int, device: str = "cuda"
) -> Callable[[], Any]:
    """A decode step of transformers: bfloat16, static cache, torch.compile(reduce-overhead).

    Behind `context` tokens, one more with each call; the cache, all of which it reads, has `most`.
    """
    from make_checkpoint import configuration
    from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

    fields = configuration(shape)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.eval()
    cache = StaticCache(config=config, max_cache_len=most)
    heads = config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # before anything is compiled: what a replayed graph allocates, the next replay overwrites
    cache.early_initialization(sequences, heads, dim, torch.bfloat16, torch.device(device))
    for layer in cache.layers:  # each call adds one
        layer.cumulative_length.fill_(context)
    step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    tokens = torch.ones((sequences, 1), dtype=torch.long, device=device)
    position = torch.full((sequences, 1), context, device=device)

    def run() -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # nothing of the step before is read any more
        with torch.no_grad():
            out = step(tokens, position_ids=position, past_key_values=cache, use_cache=True)
            return out.logits[:, -1].argmax(-1)

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
