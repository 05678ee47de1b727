"""benchmarks/draft.py compares the same answers, and make_draft.py makes a pair that agrees."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo_toy import EchoToy
from toy_model import PLAN, word_tokenizer, write_toy

import graphwright
from graphwright import SamplingParams
from graphwright.runtime.engine import Engine

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ("lookup", "draft", "shapes", "tensors", "make_checkpoint", "make_draft")
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def engine(folder: Path, speculate: bool) -> Engine:
    paths = [
        write_toy(folder / name, tokenizer=word_tokenizer(),
                  weights={**PLAN["weights"], "bytes_per_token": read})
        for name, read in (("toy.gw", 10**9), ("small.gw", 10**8))
    ]  # fmt: skip
    return Engine(paths[0], library=EchoToy("largest"), draft_library=EchoToy(), max_sequences=1,
                  speculate=f"draft:{paths[1]}" if speculate else None)  # fmt: skip


def test_a_draft_that_is_right_and_one_that_is_wrong(
    modules: dict[str, Any], tmp_path: Path
) -> None:
    draft = modules["draft"]
    plain, right, wrong = (engine(tmp_path, each) for each in (False, True, True))
    draft.turn_guesses(wrong)
    found = draft.compare([plain, right, wrong], [5] * 9, GREEDY, 2, 1)
    assert found[0]["accepted"] == found[0]["guessed"] > 5 and found[0]["tokens a step"] > 2
    assert found[1]["accepted"] == 0 < found[1]["guessed"] < 8 and found[1]["tokens a step"] == 1
    assert all(0 < each["draft share"] < 1 and each["plain"] > 0 < each["draft"] for each in found)
    cost = draft.guess_cost(plain, right, [5] * 9, 2)
    assert cost["measured"] > 0 and 0.1 < cost["taken"] < 0.12
    assert plain._pool.free == plain._pool.blocks
    assert right.draft is not None and not right.draft._followers


def test_a_pair_agrees(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
             "max_position_embeddings": 128}  # fmt: skip
    shapes = modules["shapes"].SHAPES
    monkeypatch.setitem(shapes, "tiny", {**shapes["smollm2-135m"], **small})
    folders = modules["make_draft"].make_draft("tiny", 1, tmp_path)
    model, draft = (
        graphwright.compile(each, check=False).save(tmp_path / f"{each.name}.gw")
        for each in folders
    )
    both = [Engine(each, max_sequences=1) for each in (model, draft)]
    assert both[1].plan.weights_bytes < 0.7 * both[0].plan.weights_bytes
    silent, cut = (each.logits(list(range(40))) for each in both)
    assert np.abs(silent - cut).max() <= 1e-5 * np.abs(silent).max()
    random = graphwright.compile(tmp_path / "random", check=False).save(tmp_path / "random.gw")
    whole = Engine(random, max_sequences=1).logits(list(range(40)))
    assert np.abs(whole - silent).max() > 0.1 * np.abs(whole).max(), "its layers do something"
