"""Steps with a clock around every phase: where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError, RequestError
from graphwright.runtime.library import NativeLibrary
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["StepProfile", "marking", "profile", "random_prompt", "summarize"]


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
    if steps < 3:
        raise RequestError(f"a profile needs 3 decode steps or more, not {steps}.")
    prompt = random_prompt(engine, prompt_length, steps)
    facts: dict[str, Any] = engine.artifact.json("phases.json")
    params = SamplingParams(temperature=0, max_tokens=steps + 1, ignore_eos=True)
    found: dict[str, list[tuple[NDArray[np.int64], float]]] = {"prefill": [], "decode": []}
    for _ in range(3):
        request = engine.submit(prompt, params)
        try:
            with marking(engine, len(facts["prefill"])) as marks:
                found["prefill"].append(_timed(engine, marks))
            with marking(engine, len(facts["decode"])) as marks:
                found["decode"] += [_timed(engine, marks) for _ in range(steps // 3)]
        finally:
            engine.cancel(request)
    return {
        "prefill": summarize("prefill", prompt_length, 0, found["prefill"]),
        "decode": summarize("decode", 1, prompt_length + steps // 6, found["decode"]),
    }


def random_prompt(engine: Engine, prompt_length: int, steps: int) -> list[int]:
    """Random tokens for one prefill step, with room for `steps` decodes behind. Raises
    RequestError.
    """
    most = engine.plan.entries["prefill"].max_tokens
    least = engine.plan.entries["decode"].max_tokens + 1  # fewer would not be a prefill step
    if not least <= prompt_length <= most or prompt_length + steps + 1 > engine.context:
        raise RequestError(
            f"one prefill step needs a prompt of {least} to {most} tokens that leaves room for "
            f"{steps + 1} more in the context of {engine.context}, not one of {prompt_length}."
        )
    ids = np.random.default_rng(0).integers(0, engine.plan.vocab_size, prompt_length)
    found: list[int] = ids.tolist()
    return found


@contextmanager
def marking(engine: Engine, phases: int) -> Iterator[NDArray[np.int64]]:
    """Steps of `phases` phases write their marks into what this gives (NativeLibrary.mark)."""
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


def summarize(
    entry: str, tokens: int, before: int, steps: Sequence[tuple[NDArray[np.int64], float]]
) -> StepProfile:
    """Medians over steps of an entry, each with its marks and the seconds it took in all."""
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
