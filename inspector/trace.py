"""`bench --trace`: steps as trace events, for Perfetto and chrome://tracing.

The format: Trace Event Format (Chromium), complete events ("X") and metadata ("M"), times in
microseconds, without "displayTimeUnit", which old readers take for the unit of the times. Slices of
a track nest: step, layer, kernel. Categories: host, step, layer, kernel, wait.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from graphwright.inspector.roofline import Load, Machine, Prediction, predict, short_kernel
from graphwright.runtime.trace import StepTrace

__all__ = ["trace_data"]

Event = dict[str, Any]
_HOST = 1  # the track of the host; that of thread t of a step is _HOST + 1 + t
_PROCESS = 1
_LONGEST = 200  # characters of a name; viewers cut it to what they have room for


def trace_data(
    facts: Mapping[str, Any], steps: Sequence[StepTrace], machine: Machine, title: str
) -> dict[str, Any]:
    """The JSON object of a trace file: one track for the host, one for each thread of the steps.

    A kernel's slice is what one thread works on it; `wait` behind it is until the threads have met.
    Its arguments are those of the whole kernel: bytes, operations, which of the two bounds it, the
    microseconds predicted, and the graph's name of what it computes.
    """
    origin = min(step.host[0].start for step in steps)
    threads = len(steps[0].marks)
    events = list(_names(title, threads))
    decodes = 0
    for step in steps:
        decodes += step.entry == "decode"
        name = "prefill" if step.entry == "prefill" else f"decode {decodes}"
        load = Load(step.tokens, step.before)
        predicted = predict(facts[step.entry], load, machine)
        about = {"tokens": step.tokens, "before": step.before}
        for span in step.host:
            given = about if span.name in ("step", "native step") else {}
            shown = name if span.name == "step" else span.name
            times = span.start - origin, span.end - origin
            events.append(_slice(_HOST, "host", shown, *times, given))
        for thread in range(threads):
            marks = [int(each) - origin for each in step.marks[thread]]
            track = _HOST + 1 + thread
            events.append(_slice(track, "step", name, marks[0], marks[-1], about))
            events += _phases(track, predicted, marks)
    return {
        "traceEvents": events,
        "otherData": {
            "bandwidth_gbps": machine.bandwidth,
            "float32_gops": machine.float32,
            "int8_gops": machine.int8,
        },
    }


def _names(title: str, threads: int) -> Iterator[Event]:
    yield _metadata("process_name", _HOST, {"name": title})
    tracks = ["host", *(f"thread {number}" for number in range(threads))]
    for track, name in enumerate(tracks, _HOST):
        yield _metadata("thread_name", track, {"name": name})
        yield _metadata("thread_sort_index", track, {"sort_index": track})


def _metadata(name: str, track: int, given: Event) -> Event:
    return {"ph": "M", "name": name, "pid": _PROCESS, "tid": track, "args": given}


def _phases(track: int, predicted: Sequence[Prediction], marks: Sequence[int]) -> Iterator[Event]:
    """Each layer, then its kernels and waits."""
    layers = _layers(predicted)
    for layer, numbers in groupby(range(len(predicted)), key=lambda number: layers[number]):
        inside = list(numbers)
        name = "outside layers" if layer is None else f"layer {layer}"
        yield _slice(track, "layer", name, marks[2 * inside[0]], marks[2 * inside[-1] + 2], {})
        for number in inside:
            each = predicted[number]
            start, done, met = marks[2 * number : 2 * number + 3]
            yield _slice(
                track, "kernel", short_kernel(each.kernel, width=_LONGEST), start, done,
                {
                    "computes": each.step, "kernel": each.kernel, "bytes": each.bytes,
                    "operations": each.operations, "bound": each.bound,
                    "predicted_us": round(1e6 * each.seconds, 3),
                },
            )  # fmt: skip
            if met > done:
                yield _slice(track, "wait", "wait", done, met, {"after": each.step})


def _layers(predicted: Sequence[Prediction]) -> list[int | None]:
    """The layer of each phase: what belongs to none, between two of one layer, is drawn in it."""
    found = [each.layer for each in predicted]
    known = [number for number, layer in enumerate(found) if layer is not None]
    for left, right in pairwise(known):
        if found[left] == found[right]:
            found[left:right] = [found[left]] * (right - left)
    return found


def _slice(track: int, category: str, name: str, start: int, end: int, given: Event) -> Event:
    """A complete event from `start` to `end`, in ns."""
    place = {"pid": _PROCESS, "tid": track}
    times = {"ts": _microseconds(start), "dur": _microseconds(end - start)}
    return {"ph": "X", "cat": category, "name": name, **place, **times, "args": given}


def _microseconds(nanoseconds: int) -> float:
    """Readers multiply by 1000 and may cut off what is behind the point: that must give the same
    nanosecond, or slices would overlap by one.
    """
    found = nanoseconds / 1000
    return found if int(found * 1000) == nanoseconds else math.nextafter(found, math.inf)
