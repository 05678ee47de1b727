"""Perplexity by windows against a direct computation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from toy_model import VOCAB, ToyLibrary, toy_engine, toy_logits, word_tokenizer, write_toy

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.evaluate import evaluate_text, evaluate_tokens

IDS = [(5 * i * i + 3) % VOCAB for i in range(50)]


def nll(history: list[int], target: int) -> float:
    logits = toy_logits(history).astype(np.float64)
    return float(np.log(np.exp(logits).sum()) - logits[target])


def test_one_window_without_bos(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    expected = [nll(IDS[:i], IDS[i]) for i in range(1, 50)]
    result = evaluate_tokens(engine, IDS)
    assert result.tokens == 49
    assert math.isclose(result.nll, sum(expected) / 49, rel_tol=1e-6)
    assert math.isclose(result.ppl, math.exp(result.nll))


def test_windows_with_bos(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    expected = [nll([0, *IDS[i // 11 * 11 : i]], IDS[i]) for i in range(50)]
    result = evaluate_tokens(engine, IDS, bos=0, window=12)
    assert result.tokens == 50 and math.isclose(result.nll, sum(expected) / 50, rel_tol=1e-6)


def test_windows_without_bos_share_one_token(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    expected = [nll(IDS[(i - 1) // 11 * 11 : i], IDS[i]) for i in range(1, 50)]
    result = evaluate_tokens(engine, IDS, window=12)
    assert result.tokens == 49 and math.isclose(result.nll, sum(expected) / 49, rel_tol=1e-6)


def test_strided_windows(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    expected = []
    for i in range(50):
        begin = max(0, i // 4 * 4 - 7)  # window 12 = BOS + 7 of overlap + 4 scored
        expected.append(nll([0, *IDS[begin:i]], IDS[i]))
    result = evaluate_tokens(engine, IDS, bos=0, window=12, stride=4)
    assert result.tokens == 50 and math.isclose(result.nll, sum(expected) / 50, rel_tol=1e-6)


def test_a_text_gets_the_bos_of_its_tokenizer(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "m.gw", tokenizer=word_tokenizer())
    engine = Engine(path, library=ToyLibrary())
    assert engine.tokenizer is not None and engine.tokenizer.bos_id == 0
    text = "a text of some length, to be cut"
    done: list[int] = []
    result = evaluate_text(engine, text, window=8, on_progress=lambda at, _: done.append(at))
    assert result.tokens == len(text) and done == [7, 14, 21, 28, 32]


def test_bad_windows(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    for window, stride, message in (
        (65, None, "from 2 to 64 tokens, not 65"),
        (1, None, "not 1"),
        (8, 8, "from 1 to window - 1 = 7, not 8"),
    ):
        with pytest.raises(RequestError, match=message):
            evaluate_tokens(engine, IDS, window=window, stride=stride)
    with pytest.raises(RequestError, match="nothing to score"):
        evaluate_tokens(engine, [3])
