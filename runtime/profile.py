"""Steps with a clock around every phase: where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError, RequestError
from graphwright.runtime.library import NativeLibrary
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["StepProfile", "profile"]


@dataclass(frozen=True)
class StepProfile:
    """Steps of one entry, medians over them, in seconds.

    phases [P]: each kernel, until its slowest thread was done. waits [P]: how long the mean thread
    had then waited for it. step: all of a step, with scheduling and sampling. outside: the share of
    a step that no kernel takes: barriers, launch, scheduling, sampling.
    """

    entry: str
    tokens: int
    before: int
    steps: int
    phases: NDArray[np.float64]
    waits: NDArray[np.float64]
    step: float
    outside: float


def profile(engine: Engine, prompt_length: int, steps: int) -> dict[str, StepProfile]:
    """One sequence: a prompt of random tokens in one prefill step, thrice, then `steps` decodes.

    Raises RequestError for lengths that do not fit, ArtifactError for a file without the entries.
    """
    most = engine.plan.entries["prefill"].max_tokens
    least = engine.plan.entries["decode"].max_tokens + 1  # fewer would not be a prefill step
    if not least <= prompt_length <= most or prompt_length + steps + 1 > engine.context:
        raise RequestError(
            f"a profile needs a prompt of {least} to {most} tokens that leaves room for "
            f"{steps + 1} more in the context of {engine.context}, not one of {prompt_length}."
        )
    facts: dict[str, Any] = engine.artifact.json("phases.json")
    prompt = np.random.default_rng(0).integers(0, engine.plan.vocab_size, prompt_length).tolist()
    params = SamplingParams(temperature=0, max_tokens=steps + 1, ignore_eos=True)
    found: dict[str, list[tuple[NDArray[np.int64], float]]] = {"prefill": [], "decode": []}
    for _ in range(3):
        request = engine.submit(prompt, params)
        try:
            with _marking(engine, len(facts["prefill"])) as marks:
                found["prefill"].append(_timed(engine, marks))
            with _marking(engine, len(facts["decode"])) as marks:
                found["decode"] += [_timed(engine, marks) for _ in range(steps // 3)]
        finally:
            engine.cancel(request)
    return {
        "prefill": _summary("prefill", prompt_length, 0, found["prefill"]),
        "decode": _summary("decode", 1, prompt_length + steps // 6, found["decode"]),
    }


@contextmanager
def _marking(engine: Engine, phases: int) -> Iterator[NDArray[np.int64]]:
    library = engine.library
    if not isinstance(library, NativeLibrary):
        raise ArtifactError("only compiled code can be profiled.")
    marks = np.zeros((engine.threads, 1 + 2 * phases), np.int64)
    library.mark(marks)
    try:
        yield marks
    finally:
        library.mark(None)


def _timed(engine: Engine, marks: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
    start = time.perf_counter()
    engine.step()
    return marks.copy(), time.perf_counter() - start


def _summary(
    entry: str, tokens: int, before: int, steps: list[tuple[NDArray[np.int64], float]]
) -> StepProfile:
    begin = np.stack([marks[:, 0:-1:2] for marks, _ in steps])  # [steps, threads, phases]
    done = np.stack([marks[:, 1::2] for marks, _ in steps])
    spent = (done - begin) / 1e9
    slowest = spent.max(axis=1)
    waits = slowest - spent.mean(axis=1)
    seconds = np.array([each for _, each in steps])
    return StepProfile(
        entry, tokens, before, len(steps), np.median(slowest, axis=0), np.median(waits, axis=0),
        float(np.median(seconds)), float(np.median(1 - slowest.sum(axis=1) / seconds)),
    )  # fmt: skip
