"""The self-test replays golden tokens through both entries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy_model import PLAN, ToyLibrary, toy_logits

from graphwright.runtime.artifact import ArtifactWriter
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError
from graphwright.runtime.self_test import self_test

PROMPT = list(range(20, 28))


def engine(path: Path, golden: object) -> Engine:
    with ArtifactWriter(path) as writer:
        writer.add("weights.bin", bytes(256))
        writer.add("plan.json", json.dumps(PLAN))
        if golden is not None:
            writer.add("golden.json", json.dumps(golden))
    return Engine(path, library=ToyLibrary())


def golden() -> dict[str, list[float]]:
    rows = np.stack([toy_logits(PROMPT[: i + 1]) for i in range(len(PROMPT))])
    best = np.sort(rows, axis=1)
    return {
        "prompt": PROMPT,
        "greedy": rows.argmax(axis=1).tolist(),
        "top": best[:, -1].tolist(),
        "gap": (best[:, -1] - best[:, -2]).tolist(),
    }


def test_it_passes_and_uses_both_entries(tmp_path: Path) -> None:
    one = engine(tmp_path / "m.gw", golden())
    result = self_test(one)
    assert result.passed and result.positions == 8 and result.worst < 1e-3
    assert isinstance(one._library, ToyLibrary)
    assert {entry for entry, *_ in one._library.steps} == {"decode", "prefill"}


def test_it_fails_on_another_token_or_logit(tmp_path: Path) -> None:
    wrong = golden()
    wrong["greedy"][3] = (wrong["greedy"][3] + 1) % 97
    wrong["gap"][3] = 5.0
    result = self_test(engine(tmp_path / "a.gw", wrong))
    assert not result.passed and result.wrong == (3,) and result.worst > 1
    shifted = golden()
    shifted["top"][5] += 1.0
    result = self_test(engine(tmp_path / "b.gw", shifted))
    assert not result.passed and result.wrong == ()


def test_an_artifact_without_golden_tokens(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no entry 'golden.json'"):
        self_test(engine(tmp_path / "a.gw", None))
    with pytest.raises(ArtifactError, match=r"golden.json is incomplete"):
        self_test(engine(tmp_path / "b.gw", {"prompt": [1]}))
