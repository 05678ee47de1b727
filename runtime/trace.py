"""Steps with a clock around every phase and around what the host does: when each thread does what.

All times are nanoseconds of CLOCK_MONOTONIC, in compiled code and on the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.profile import marking, random_prompt
from graphwright.runtime.request import Request
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["Span", "StepTrace", "trace"]


@dataclass(frozen=True)
class Span:
    """What the host did from `start` to `end`, in ns."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class StepTrace:
    """One step: `tokens` of a sequence after `before` others.

    marks [threads, 1 + 2 * phases]: as NativeLibrary.mark says. host: what the host did, whole
    spans before those inside them.
    """

    entry: str
    tokens: int
    before: int
    marks: NDArray[np.int64]
    host: tuple[Span, ...]


def trace(engine: Engine, prompt_length: int, steps: int) -> list[StepTrace]:
    """One sequence: a prompt of random tokens in one prefill step, then `steps` decodes, greedily.

    The same runs once before, unseen. Raises RequestError for lengths that do not fit,
    ArtifactError for code that is not for CPUs.
    """
    if steps < 1:
        raise RequestError(f"a trace needs one decode step or more, not {steps}.")
    prompt = random_prompt(engine, prompt_length, steps)
    _run(engine, prompt, steps)
    return _run(engine, prompt, steps)


def _run(engine: Engine, prompt: list[int], steps: int) -> list[StepTrace]:
    facts: dict[str, Any] = engine.artifact.json("phases.json")
    params = SamplingParams(temperature=0, max_tokens=steps + 1, ignore_eos=True)
    request = engine.submit(prompt, params)
    calls: list[tuple[object, str, str]] = [
        (engine.library, "run", "native step"), (request, "accept", "sample")
    ]  # fmt: skip
    if engine.tokenizer is not None:
        calls.append((engine.tokenizer, "decode", "text"))
    try:
        with _timed(calls) as spans:
            with marking(engine, len(facts["prefill"])) as marks:
                host = _step(engine, request, spans)
                found = [StepTrace("prefill", len(prompt), 0, marks.copy(), host)]
            with marking(engine, len(facts["decode"])) as marks:
                for number in range(steps):
                    host = _step(engine, request, spans)
                    before = len(prompt) + number
                    found.append(StepTrace("decode", 1, before, marks.copy(), host))
    finally:
        engine.cancel(request)
    return found


def _step(engine: Engine, request: Request, spans: list[Span]) -> tuple[Span, ...]:
    spans.clear()
    start = time.monotonic_ns()
    engine.step()
    end = time.monotonic_ns()
    for _ in request.take_pieces():
        pass
    taken = time.monotonic_ns()
    native = next(span for span in spans if span.name == "native step")
    whole = [Span("step", start, end), Span("schedule", start, native.start)]
    # A span is noted when it ends: of two that begin together the longer one is around the other.
    inner = sorted(spans, key=lambda span: (span.start, -span.end))
    return (*whole, *inner, Span("hand over", end, taken))


@contextmanager
def _timed(calls: Sequence[tuple[object, str, str]]) -> Iterator[list[Span]]:
    """Notes each call of these methods: (of which object, the method, what a span is named)."""
    spans: list[Span] = []
    for owner, method, name in calls:
        setattr(owner, method, _noting(getattr(owner, method), name, spans))
    try:
        yield spans
    finally:
        for owner, method, _ in calls:
            delattr(owner, method)  # what the class says stands there again


def _noting(call: Callable[..., Any], name: str, spans: list[Span]) -> Callable[..., Any]:
    def noting(*arguments: Any, **options: Any) -> Any:
        start = time.monotonic_ns()
        try:
            return call(*arguments, **options)
        finally:
            spans.append(Span(name, start, time.monotonic_ns()))

    return noting
