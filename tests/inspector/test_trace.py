"""`bench --trace`: events by hand, and of compiled code, whose times nest and add up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphwright.__main__ import main
from graphwright.inspector import Machine, trace_data
from graphwright.inspector.roofline import Load, predict
from graphwright.runtime.artifact import ArtifactWriter
from graphwright.runtime.cuda.program import LAUNCHES
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.profile import StepProfile, summarize
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.trace import Span, StepTrace, trace
from graphwright.runtime.variants import Variant

Event = dict[str, Any]
MACHINE = Machine(bandwidth=10, float32=100, int8=200)


def phase(step: str, layer: int | None, size: int, operations: int) -> dict[str, Any]:
    found = dict.fromkeys(
        ("weight_bytes_per_row", "lookup_bytes", "bytes_per_row", "bytes_per_position",
         "operations_per_position"), 0,
    )  # fmt: skip
    named = {"step": step, "kernel": f"{step}_x86_64_v3", "layer": layer, "rows": "T"}
    counted = {"weight_bytes": size, "operations_per_row": operations, "arithmetic": "float32"}
    return {**found, **named, **counted}


def slices(data: Event, track: int, *categories: str) -> list[Event]:
    events = [each for each in data["traceEvents"] if each["ph"] == "X" and each["tid"] == track]
    return [each for each in events if not categories or each["cat"] in categories]


def nanoseconds(event: Event) -> tuple[int, int]:
    """(start, end), as a reader has them that cuts off what is behind the point."""
    start, length = int(event["ts"] * 1000), int(event["dur"] * 1000)
    assert (start, length) == (round(event["ts"] * 1000), round(event["dur"] * 1000))
    return start, start + length


def nested(events: list[Event]) -> Iterator[tuple[Event, Event | None]]:
    """Each event with the one around it. Fails where two overlap and neither is in the other."""
    around: list[Event] = []
    for event in events:
        start, end = nanoseconds(event)
        while around and nanoseconds(around[-1])[1] <= start:
            around.pop()
        if around:
            outer = nanoseconds(around[-1])
            assert outer[0] <= start <= end <= outer[1], (event, around[-1])
        yield event, around[-1] if around else None
        around.append(event)


@pytest.mark.parametrize("first", [0, 10**6, 10**12])
def test_readers_that_cut_off_see_the_same_nanoseconds(first: int) -> None:
    marks = np.array([[first + 7 * i + i // 3 for i in range(201)]])
    phases = [phase("p", 0, 1, 1)] * 100
    step = StepTrace("decode", 1, 7, marks, (Span("step", 0, first + 2000),))
    data = trace_data({"decode": phases}, [step], MACHINE, "tiny.gw")
    found = [nanoseconds(each) for each in slices(data, 2, "kernel", "wait")]
    assert found == [(int(a), int(b)) for a, b in zip(marks[0], marks[0, 1:], strict=False)]


def test_two_threads_by_hand() -> None:
    """A phase outside of layers between two of layer 0 is drawn in it."""
    phases = [phase("embed", None, 100, 1), phase("norm", 0, 5000, 1),
              phase("cast", None, 40, 1), phase("mix", 0, 10, 10**6)]  # fmt: skip
    marks = np.array([
        [1100, 1200, 1210, 1500, 1500, 1600, 1650, 1900, 2000],
        [1105, 1150, 1205, 1400, 1510, 1640, 1650, 2000, 2000],
    ])  # fmt: skip
    host = (Span("step", 1000, 2500), Span("schedule", 1000, 1080),
            Span("native step", 1080, 2100), Span("hand over", 2500, 2600))  # fmt: skip
    step = StepTrace("decode", 1, 7, marks, host)
    data = trace_data({"decode": phases}, [step], MACHINE, "tiny.gw")
    named = {(each["name"], each["tid"]): each["args"] for each in data["traceEvents"]
             if each["ph"] == "M"}  # fmt: skip
    assert named["process_name", 1] == {"name": "tiny.gw"}
    assert [named["thread_name", track]["name"] for track in (1, 2, 3)] == [
        "host", "thread 0", "thread 1",
    ]  # fmt: skip
    assert [(each["name"], nanoseconds(each)) for each in slices(data, 1)] == [
        ("decode 1", (0, 1500)), ("schedule", (0, 80)), ("native step", (80, 1100)),
        ("hand over", (1500, 1600)),
    ]  # fmt: skip
    assert [(each["cat"], each["name"], nanoseconds(each)) for each in slices(data, 2)] == [
        ("step", "decode 1", (100, 1000)),
        ("layer", "outside layers", (100, 210)),
        ("kernel", "embed", (100, 200)), ("wait", "wait", (200, 210)),
        ("layer", "layer 0", (210, 1000)),
        ("kernel", "norm", (210, 500)),
        ("kernel", "cast", (500, 600)), ("wait", "wait", (600, 650)),
        ("kernel", "mix", (650, 900)), ("wait", "wait", (900, 1000)),
    ]  # fmt: skip
    norm, mix = (slices(data, 2, "kernel")[number]["args"] for number in (1, 3))
    assert norm == {"computes": "norm", "kernel": "norm_x86_64_v3", "bytes": 5000,
                    "operations": 1, "bound": "memory", "predicted_us": 0.5}  # fmt: skip
    assert (mix["bound"], mix["operations"], mix["predicted_us"]) == ("compute", 10**6, 10)
    assert slices(data, 3, "wait")[0]["args"] == {"after": "embed"}


@pytest.fixture(scope="module")
def traced(artifact_path: Path) -> tuple[Engine, list[StepTrace], Event]:
    engine = Engine(artifact_path, max_sequences=1, threads=2, context=64)
    facts = engine.artifact.json("phases.json")
    steps = trace(engine, 20, 3)
    text = json.dumps(trace_data(facts, steps, MACHINE, "tiny.gw"), allow_nan=False)
    return engine, steps, json.loads(text)


def test_times_nest_on_every_track(traced: tuple[Engine, list[StepTrace], Event]) -> None:
    _, steps, data = traced
    assert [(each.entry, each.tokens, each.before) for each in steps] == [
        ("prefill", 20, 0), *(("decode", 1, 20 + i) for i in range(3)),
    ]  # fmt: skip
    tracks = {each["tid"] for each in data["traceEvents"]}
    assert tracks == {1, 2, 3}
    inside = {"layer": "step", "kernel": "layer", "wait": "layer"}
    for track in (2, 3):
        for event, outer in nested(slices(data, track)):
            assert (outer["cat"] if outer else None) == inside.get(event["cat"]), event
    names = ["schedule", "native step", "sample", "hand over"]
    host = list(nested(slices(data, 1)))
    for name in ("prefill", "decode 1", "decode 2", "decode 3"):
        at = next(i for i, (event, _) in enumerate(host) if event["name"] == name)
        own = [event["name"] for event, _ in host[at + 1 : at + 5]]
        assert own == names  # this model has no tokenizer, so no text
        assert [outer and outer["name"] for _, outer in host[at + 1 : at + 5]] == [name] * 3 + [
            None
        ]


def test_steps_of_threads_lie_in_those_of_the_host(
    traced: tuple[Engine, list[StepTrace], Event],
) -> None:
    _, _, data = traced
    native = [each for each in slices(data, 1) if each["name"] == "native step"]
    for track in (2, 3):
        of_thread = slices(data, track, "step")
        assert len(of_thread) == len(native) == 4
        for inner, outer in zip(of_thread, native, strict=True):
            (start, end), (first, last) = nanoseconds(inner), nanoseconds(outer)
            assert first <= start < end <= last
            assert inner["args"] == outer["args"]


def test_sums_are_those_of_the_profile(traced: tuple[Engine, list[StepTrace], Event]) -> None:
    engine, steps, data = traced
    facts = engine.artifact.json("phases.json")
    at = 0
    for step in steps:
        count = len(facts[step.entry])
        times = np.array([
            [each["dur"] for each in slices(data, track, "kernel")[at : at + count]]
            for track in (2, 3)
        ]) / 1e6  # fmt: skip
        measured: StepProfile = summarize(step.entry, 1, 0, [(step.marks, 1.0)])
        assert np.allclose(times.max(axis=0), measured.phases, rtol=0, atol=1e-12)
        waits = times.max(axis=0) - times.mean(axis=0)
        assert np.allclose(waits, measured.waits, rtol=0, atol=1e-12)
        for track in (2, 3):
            given = [each["args"] for each in slices(data, track, "kernel")[at : at + count]]
            expected = predict(facts[step.entry], Load(step.tokens, step.before), MACHINE)
            assert [(a["computes"], a["bytes"], a["operations"], a["bound"]) for a in given] == [
                (each.step, each.bytes, each.operations, each.bound) for each in expected
            ]
        at += count
    for thread, track in enumerate((2, 3)):
        whole = sum(each["dur"] for each in slices(data, track, "kernel", "wait")) / 1e6
        marks = [step.marks[thread] for step in steps]
        assert whole == pytest.approx(sum(int(row[-1] - row[0]) for row in marks) / 1e9, abs=1e-9)


def test_the_engine_is_left_as_it_was(traced: tuple[Engine, list[StepTrace], Event]) -> None:
    engine, _, _ = traced
    assert not {"run", "accept"} & set(vars(engine.library))
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    assert len(engine.generate([[1, 2, 3]], params)[0].token_ids) == 5
    with pytest.raises(RequestError, match="room for 4 more in the context of 64, not one of 62"):
        trace(engine, 62, 3)
    with pytest.raises(RequestError, match="one decode step or more, not 0"):
        trace(engine, 20, 0)


def test_the_verb_writes_a_file(
    artifact_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    command = ["bench", str(artifact_path), "--trace", str(path), "--prompt-len", "20"]
    assert main([*command, "--gen-len", "2", "--threads", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    data = json.loads(path.read_text())
    assert said == {"trace": str(path), "events": len(data["traceEvents"]), "prompt_tokens": 20,
                    "decode_steps": 2, "threads": 1}  # fmt: skip
    names = [each["name"] for each in slices(data, 2, "step")]
    assert names == ["prefill", "decode 1", "decode 2"]
    assert data["otherData"]["bandwidth_gbps"] > 0
    assert main([*command[:3], str(tmp_path / "none" / "t.json"), *command[4:]]) == 1
    assert "t.json cannot be written: No such file or directory." in capsys.readouterr().err
    for option in (["--profile"], ["--speculate", "lookup"]):
        assert main([*command, *option]) == 2
    assert "leave --speculate out" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--trace", "t.json"], ["--profile"]])
def test_artifacts_for_gpus_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    with ArtifactWriter(tmp_path / "gpu.gw", variants=[Variant("sm_90", ())]) as writer:
        writer.add(LAUNCHES, "{}")
    assert main(["bench", str(tmp_path / "gpu.gw"), *option]) == 1
    error = capsys.readouterr().err
    assert f"{option[0]} is for CPUs" in error and "gpu.gw is for GPUs" in error
    assert error.count("\n") == 1
