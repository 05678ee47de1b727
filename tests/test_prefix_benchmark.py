"""benchmarks/prefix.py: the prompts that it calls known are known, and the others are not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from state_toy import state_engine

FILE = Path(__file__).parents[1] / "benchmarks" / "prefix.py"


def test_what_is_known_begins_where_it_should(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("prefix_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    engines = [
        state_engine(tmp_path, "hybrid", prefix_cache=each, max_sequences=2)
        for each in (False, True)
    ]
    found = module.compare(*engines, 40, 32, 3)
    assert found["reused"] == 32 and found["off"] == 0
    assert all(found[name] > 0 for name in ("without a cache", "unknown", "known"))
