"""How fast an engine is: one sequence, a random prompt of a given length, greedy decoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.statistics import peak_rss_mb

__all__ = ["BenchmarkResult", "measure"]


@dataclass(frozen=True)
class BenchmarkResult:
    """Medians over the repetitions. Rates in tokens/s, times in seconds, sizes in 10^6 bytes.

    prefill_tps: prompt tokens / time to the first token. decode_tps: tokens after the first / their
    time. effective_gbps: weight bytes that a step of one token reads * steps a second / 10^9.
    drafted_tokens, accepted_tokens, tokens_per_step, draft_share: as Statistics.speculation says,
    of all that `engine` has decoded; 0, 0, 1 and 0 without guesses.
    """

    prefill_tps: float
    decode_tps: float
    ttft_s: float
    load_s: float
    peak_rss_mb: float
    artifact_mb: float
    weight_bytes_per_token: int
    effective_gbps: float
    prompt_len: int
    gen_len: int
    reps: int
    threads: int
    drafted_tokens: int
    accepted_tokens: int
    tokens_per_step: float
    draft_share: float


def measure(
    engine: Engine,
    prompt_length: int,
    generated: int,
    repetitions: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> BenchmarkResult:
    """Runs once to warm up, then `repetitions` times. Raises RequestError for bad lengths."""
    if generated < 2:
        raise RequestError(f"the generated length must be 2 or more, not {generated}.")
    if prompt_length < 1 or repetitions < 1:
        raise RequestError("the prompt length and the repetitions must be 1 or more.")
    if prompt_length + generated > engine.context:
        raise RequestError(
            f"{prompt_length} prompt and {generated} generated tokens do not fit into the context "
            f"of {engine.context}."
        )
    random = np.random.default_rng(0)
    firsts, rates = [], []
    for repetition in range(repetitions + 1):
        prompt = random.integers(0, engine.plan.vocab_size, prompt_length).tolist()
        first, rate = _once(engine, prompt, generated)
        if repetition:
            firsts.append(first)
            rates.append(rate)
        if on_progress is not None:
            on_progress(repetition + 1, repetitions + 1)
    ttft, decode = median(firsts), median(rates)
    bytes_per_token = engine.plan.weight_bytes_per_token
    if engine.adapter is None:
        bytes_per_token -= engine.plan.adapter_bytes_per_token
    guesses = engine.statistics.speculation()
    return BenchmarkResult(
        prefill_tps=round(prompt_length / ttft, 2),
        decode_tps=round(decode, 2),
        ttft_s=round(ttft, 5),
        load_s=round(engine.load_seconds, 4),
        peak_rss_mb=round(peak_rss_mb(), 2),
        artifact_mb=round(engine.artifact.size / 1e6, 3),
        weight_bytes_per_token=bytes_per_token,
        effective_gbps=round(bytes_per_token * decode / guesses["tokens_per_step"] / 1e9, 3),
        prompt_len=prompt_length,
        gen_len=generated,
        reps=repetitions,
        threads=engine.threads,
        drafted_tokens=int(guesses["drafted_tokens"]),
        accepted_tokens=int(guesses["accepted_tokens"]),
        tokens_per_step=guesses["tokens_per_step"],
        draft_share=guesses["draft_share"],
    )


def _once(engine: Engine, prompt: list[int], generated: int) -> tuple[float, float]:
    """(seconds to the first token, tokens a second after it), greedy, end-of-text ignored."""
    params = SamplingParams(temperature=0, max_tokens=generated, ignore_eos=True)
    start = time.perf_counter()
    first = end = start
    for number, _ in enumerate(engine.stream(prompt, params)):
        end = time.perf_counter()
        if number == 0:
            first = end
    return first - start, (generated - 1) / (end - first)
