"""benchmarks/lookup.py writes the text it is told to, both ways, and its figures are of that."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from echo_toy import EchoToy, echo_greedy
from toy_model import PLAN, word_tokenizer, write_toy

from graphwright import SamplingParams
from graphwright.runtime.engine import Engine

FILE = Path(__file__).parents[1] / "benchmarks" / "lookup.py"
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lookup_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def engine(folder: Path, speculate: str | None) -> Engine:
    weights = {**PLAN["weights"], "bytes_per_token": 10**9}
    path = write_toy(folder / "toy.gw", tokenizer=word_tokenizer(), weights=weights)
    return Engine(path, library=EchoToy("largest"), max_sequences=1, speculate=speculate)


def test_a_given_text_is_written_with_and_without_guesses(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    engines = [engine(tmp_path, each) for each in (None, "lookup")]
    text = [5, 6, 7, 8, 9] * 3
    found = benchmark.compare(*engines, [5, 6, 7, 8, 9, 5, 6, 7, 8, 9], text, GREEDY, rounds=1)
    assert found["accepted"] == found["guessed"] > 5
    assert found["tokens a step"] == pytest.approx(11 / (11 - found["accepted"]))
    assert found["plain"] > 0 < found["lookup"]
    _, said = benchmark.write(engines[1], [5] * 9, None, GREEDY, 2)
    assert said == echo_greedy([0] + [5] * 9, 12)


def test_its_texts_fit_and_steps_have_costs(benchmark: ModuleType, tmp_path: Path) -> None:
    plain = engine(tmp_path, None)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(word_tokenizer())
    found = benchmark.answers(plain, tokenizer, 20)
    assert len(found) == 5
    for prompt, text, params in found.values():
        assert 0 < len(prompt) < plain.context - 20 and params.max_tokens == 20
        assert text is None or len(text) == 20
    costs = benchmark.step_costs(plain, 1, before=20)
    assert list(costs) == [1, 2, 3, 4, 5, 6, 8, 9] and costs[1] == 1
    assert plain._pool.free == plain._pool.blocks
