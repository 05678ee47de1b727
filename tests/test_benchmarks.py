"""A full run of the benchmarks with runtimes of cardboard: every target has its measurement."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SPEED = {4: 40.0, 8: 20.0, 16: 10.0, 32: 5.0}  # tokens a second by bits; peers have half of it

TARGETS = {  # words of the targets: how many there are
    "best 4-bit scheme : best 4-bit peer": 1, "`w8` : best 8-bit peer": 1,
    "16` : llama.cpp F16": 2, "share of the read probe": 2, "smollm2-135m, ": 2,
    "stories15m, 8 bits": 1, "prefill 512": 2, "8 sequences": 2, "decode at 4096 tokens": 2,
    "first token": 2, "compile of the 1.1B": 1, "beside a busy process": 2, "outside of kernels": 1,
}  # fmt: skip


class FakeWorker:
    """Answers at once. `broken`: titles that do not start."""

    broken: frozenset[str] = frozenset()

    def __init__(self, contestant: Any) -> None:
        if contestant.title in self.broken:
            ended = import_module("worker_process").WorkerEnded
            raise ended(f"the worker of '{contestant.title}' ended")
        self.contestant, self.peak_rss_mb = contestant, 100
        self.hello = {"version": "fake 1", "weight_bytes": 10**9, "load_s": 0.1}

    def ask(self, op: str, **command: Any) -> float:
        speed = SPEED[self.contestant.bits] * (1.0 if self.contestant.ours else 0.5)
        return speed * {"batch": 4.0, "prefill": 10.0}.get(op, 1.0)

    def stop(self) -> None:
        pass


class FakeProbe:
    def __init__(self, threads: int) -> None:
        pass

    def measure(self) -> float:
        return 40.0


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """benchmarks/run.py, whose runtimes, files and clocks are fakes."""
    names = [path.stem for path in BENCHMARKS.glob("*.py")]
    for name in names:  # tests/sweep has a run and a report too
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    run, lineup, scenarios = map(import_module, ("run", "lineup", "scenarios"))
    monkeypatch.setattr(lineup, "artifact", lambda *_: Path("model.gw"))
    monkeypatch.setattr(lineup, "peer_model", lambda *_: Path("model"))
    monkeypatch.setattr(lineup, "python_of", lambda *_: Path("python"))
    monkeypatch.setattr(scenarios, "Worker", FakeWorker)
    monkeypatch.setattr(
        scenarios, "first_token_seconds", lambda each, _: (1.0 + 2 * (not each.ours), 0.2)
    )
    monkeypatch.setattr(scenarios, "_disturbed", lambda function: lambda: 0.6 * function())
    monkeypatch.setattr(run, "artifact", lambda *_: Path("model.gw"))
    monkeypatch.setattr(run, "compile_ahead", lambda *_: None)
    monkeypatch.setattr(run, "Probe", FakeProbe)
    monkeypatch.setattr(run, "_kv_bytes_per_token", lambda _: 1000)
    cost = {"seconds": 50.0, "peak_private_mb": 2000, "quant": "w4g32", "shape": "tinyllama-1.1b",
            "stages": {"capture": 10.0}, "artifact_bytes": 10**9}  # fmt: skip
    monkeypatch.setattr(run, "compile_cost", lambda *_: cost)
    profile = {"name": "w4g32", "steps": 3, "outside": 0.02, "all_outside": [0.02], "step_ms": 40.0}
    monkeypatch.setattr(run, "step_profile", lambda *_: profile)
    yield run
    for name in names:
        sys.modules.pop(name, None)


def test_a_full_run_measures_every_target(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(tmp_path / "all.json")])
    run.main()
    results, targets = import_module("results"), import_module("targets")
    found = [each.what for each in targets.targets(results.Results(tmp_path / "all.json"))]
    for words, count in TARGETS.items():
        assert sum(words in what for what in found) == count, "\n".join([words, *found])
    assert sum(TARGETS.values()) == len(found)
    text = capsys.readouterr().out
    for title in ("Prefill", "Batches", "Long contexts", "Outside of kernels", "Compiling"):
        assert f"## {title}" in text


def test_a_peer_that_does_not_start_is_named(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FakeWorker, "broken", frozenset({"OpenVINO int4"}))
    output = tmp_path / "part.json"
    monkeypatch.setattr(sys, "argv", ["run.py", "--shapes", "stories15m", "--scenarios", "decode",
                                      "--output", str(output)])  # fmt: skip
    run.main()
    (integers, *_) = json.loads(output.read_text())["measurements"]
    assert integers["notes"] == ["OpenVINO int4 did not start"]
    assert "OpenVINO int4 did not start." in capsys.readouterr().out
    monkeypatch.setattr(FakeWorker, "broken", frozenset({"graphwright w8"}))
    with pytest.raises(SystemExit, match="graphwright w8"):
        run.main()
