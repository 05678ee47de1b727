"""benchmarks/server.py asks as it says, and its table has every figure."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from served_toy import served_toy

FILE = Path(__file__).parents[2] / "benchmarks" / "server.py"


@pytest.fixture
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("server_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_counts_the_tokens_of_every_answer(benchmark: ModuleType, tmp_path: Path) -> None:
    with served_toy(tmp_path) as toy:
        bodies = [
            {"prompt": [n], "max_tokens": 5, "ignore_eos": True, "temperature": 0, **extra}
            for n, extra in enumerate(
                ({}, {"stream": True, "stream_options": {"include_usage": True}})
            )
        ]
        assert benchmark.ask(toy.port, bodies) > 0
        with pytest.raises(AssertionError, match="is unknown; leave it out"):
            benchmark.ask(toy.port, [{**bodies[0], "mood": 1}])


def test_the_table_has_medians_and_ratios_of_neighbours(benchmark: ModuleType) -> None:
    rates = iter([1.0, 1.0, 10.0, 5.0, 20.0, 16.0, 40.0, 36.0])
    runs = {title: lambda: next(rates) for title in ("engine.generate", "server")}
    found = benchmark.alternate(runs, 3)
    assert found == {"engine.generate": [10.0, 20.0, 40.0], "server": [5.0, 16.0, 36.0]}
    report = benchmark.summary(found)
    assert report["server"] == {"tokens_per_second": 16.0, "ratio": 0.8}
    lines = benchmark.table({"streams": 8, "tokens": 5, "threads": 2, **report}).splitlines()
    assert len(lines) == 3 and lines[2].split()[1] == "16.0"
