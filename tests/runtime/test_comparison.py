"""Two artifacts beside each other on a text, against numbers by hand and plain formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shared_data import shared_path
from toy_model import PLAN, VOCAB, ToyLibrary, toy_logits, word_tokenizer, write_toy

import graphwright
from graphwright.runtime.comparison import Comparison, compare_text, compare_tokens
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError

IDS = [(5 * i * i + 3) % VOCAB for i in range(50)]
Logits = Callable[[Sequence[int]], NDArray[np.float32]]


class OtherLogits(ToyLibrary):
    """The toy with logits of your own."""

    def __init__(self, logits: Logits) -> None:
        super().__init__()
        self._logits = logits

    def logits_after(self, history: Sequence[int]) -> NDArray[np.float32]:
        return self._logits(history)


def toy(folder: Path, name: str, logits: Logits = toy_logits, **changes: Any) -> Engine:
    path = write_toy(folder / f"{name}.gw", **changes)
    return Engine(path, max_sequences=1, library=OtherLogits(logits))


def blurred(history: Sequence[int]) -> NDArray[np.float32]:
    """What a coarser toy says."""
    noise = np.random.default_rng([7, *history]).standard_normal(VOCAB).astype(np.float32)
    found: NDArray[np.float32] = toy_logits(history) + noise
    return found


def flat(_: Sequence[int]) -> NDArray[np.float32]:
    return np.zeros(VOCAB, np.float32)


def leaning(_: Sequence[int]) -> NDArray[np.float32]:
    """Token 0 twice as likely as any other."""
    found = np.zeros(VOCAB, np.float32)
    found[0] = math.log(2)
    return found


def plain(
    ours: NDArray[np.floating], theirs: NDArray[np.floating], targets: Sequence[int]
) -> dict[str, float]:
    """The same by torch, all rows at once."""
    import torch

    q, p = (torch.tensor(each, dtype=torch.float64).log_softmax(-1) for each in (ours, theirs))
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    index = torch.tensor(targets)
    nll, other = (torch.nn.functional.nll_loss(each, index, reduction="none") for each in (q, p))
    difference = torch.exp(-nll) - torch.exp(-other)
    same = (p.argmax(-1) == q.argmax(-1)).double()
    count = len(targets)

    def error(values: torch.Tensor) -> float:
        return float(values.std(unbiased=True)) / math.sqrt(count)

    rms = float((difference**2).mean()) ** 0.5
    return {
        "tokens": count,
        "nll": float(nll.mean()), "nll_error": error(nll), "ppl": float(nll.mean().exp()),
        "reference_nll": float(other.mean()), "reference_nll_error": error(other),
        "reference_ppl": float(other.mean().exp()),
        "ppl_ratio": float(nll.mean().exp() / other.mean().exp()),
        "ppl_ratio_error": float(nll.mean().exp() / other.mean().exp()) * error(nll - other),
        "kl_mean": float(kl.mean()), "kl_mean_error": error(kl),
        "kl_median": float(kl.quantile(0.5)), "kl_p90": float(kl.quantile(0.9)),
        "kl_p99": float(kl.quantile(0.99)), "kl_max": float(kl.max()),
        "same_top": float(same.mean()), "same_top_error": error(same),
        "p_difference_mean": float(difference.mean()),
        "p_difference_mean_error": error(difference),
        "p_difference_rms": rms,
        "p_difference_rms_error": error(difference**2) / (2 * rms),
    }  # fmt: skip


def check(found: Comparison, expected: dict[str, float], rel: float = 1e-9) -> None:
    assert asdict(found) == pytest.approx(expected, rel=rel, abs=1e-14)


def test_two_distributions_by_hand(tmp_path: Path) -> None:
    """1/97 each, beside 2/98 and 96 times 1/98; the text has two tokens 0 among eight."""
    text = [5, 0, 3, 3, 0, 9, 8, 7, 6]
    even, uneven = toy(tmp_path, "flat", flat), toy(tmp_path, "leaning", leaning)
    found = compare_tokens(uneven, even, text)
    assert found.tokens == 8
    kl = math.log(98 / 97) - math.log(2) / 97
    assert found.kl_mean == pytest.approx(kl, rel=1e-5) == found.kl_median == found.kl_max
    assert found.kl_mean_error < 1e-12
    assert found.nll == pytest.approx(math.log(98) - 2 / 8 * math.log(2), rel=1e-6)
    assert found.reference_nll == pytest.approx(math.log(97), rel=1e-9)
    assert found.ppl_ratio == pytest.approx(98 / 97 / 2**0.25, rel=1e-6)
    assert (found.same_top, found.same_top_error) == (1, 0)
    up, down = 2 / 98 - 1 / 97, 1 / 98 - 1 / 97
    assert found.p_difference_mean == pytest.approx((2 * up + 6 * down) / 8, rel=1e-5)
    mean_square = (2 * up**2 + 6 * down**2) / 8
    assert found.p_difference_rms == pytest.approx(mean_square**0.5, rel=1e-5)
    # Two values, the one twice and the other six times: variance 12/64 * 8/7 of their difference.
    spread = (up - down) * (12 / 64 * 8 / 7 / 8) ** 0.5
    assert found.p_difference_mean_error == pytest.approx(spread, rel=1e-5)
    other = compare_tokens(even, uneven, text)
    reverse = 2 / 98 * math.log(2 * 97 / 98) + 96 / 98 * math.log(97 / 98)
    assert other.kl_mean == pytest.approx(reverse, rel=1e-5)
    assert other.p_difference_mean == pytest.approx(-found.p_difference_mean, rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"window": 12}, {"bos": 0, "window": 12, "stride": 4}])
def test_every_measure_against_a_plain_formula(tmp_path: Path, options: dict[str, Any]) -> None:
    """Whatever the windows, and where the chunks of one end elsewhere than those of the other."""
    limits = {**PLAN["entries"], "prefill": {**PLAN["entries"]["prefill"], "max_tokens": 7}}
    coarse, exact = toy(tmp_path, "a", blurred, entries=limits), toy(tmp_path, "b")
    first = 0 if "bos" in options else 1
    window, stride = options.get("window", 64), options.get("stride")
    stride = window - 1 if stride is None else stride
    histories = []
    for i in range(first, 50):
        begin = max(0, (i - first) // stride * stride - (window - 1 - stride))
        histories.append([0] * (1 - first) + IDS[begin:i])
    ours, theirs = (np.stack([each(past) for past in histories]) for each in (blurred, toy_logits))
    done: list[int] = []
    found = compare_tokens(coarse, exact, IDS, **options, on_progress=lambda at, _: done.append(at))
    check(found, plain(ours, theirs, IDS[first:]))
    assert 0 < found.same_top < 1 and found.kl_median < found.kl_p90 < found.kl_p99 < found.kl_max
    assert done == [*range(first + stride, 50, stride), 50]


def test_a_row_at_a_time_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse, exact = toy(tmp_path, "a", blurred), toy(tmp_path, "b")
    expected = compare_tokens(coarse, exact, IDS)
    monkeypatch.setattr("graphwright.runtime.comparison._BLOCK", 1)
    check(compare_tokens(coarse, exact, IDS), asdict(expected))


def test_one_model_is_not_far_from_itself(tmp_path: Path) -> None:
    found = compare_tokens(toy(tmp_path, "a"), toy(tmp_path, "b"), IDS)
    assert (found.kl_mean, found.kl_max, found.kl_mean_error) == (0, 0, 0)
    assert (found.ppl_ratio, found.same_top, found.p_difference_rms) == (1, 1, 0)
    assert found.p_difference_rms_error == found.ppl_ratio_error == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    def spoiled(history: Sequence[int]) -> NDArray[np.float32]:
        found = toy_logits(history)
        found[11] = value if len(history) == 14 else found[11]
        return found

    wrong, exact = toy(tmp_path, "wrong", spoiled), toy(tmp_path, "exact")
    message = f"wrong.gw gives the token 11 the logit {value} after the token {IDS[13]}, number 13"
    for pair in ((wrong, exact), (exact, wrong)):
        with pytest.raises(RequestError, match=message):
            compare_tokens(*pair, IDS)
    assert compare_tokens(wrong, exact, IDS[:14]).tokens == 13  # and both can go on


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    words = toy(tmp_path, "words", tokenizer=word_tokenizer())
    for other, message in (
        (toy(tmp_path, "bare"), "bare.gw has no tokenizer"),
        (toy(tmp_path, "free", tokenizer=word_tokenizer(bos=False)), "have different tokenizers"),
        (toy(tmp_path, "wide", tokenizer=word_tokenizer(), vocab_size=98),
         "words.gw has a vocabulary of 97 tokens and .*wide.gw one of 98"),
        (words, "an engine reads one text at a time"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=message):
            compare_text(words, other, "a text")
    twin = toy(tmp_path, "twin", tokenizer=word_tokenizer())
    with pytest.raises(RequestError, match="need two tokens that are scored; the text has one"):
        compare_text(words, twin, "a")
    with pytest.raises(RequestError, match="from 2 to 64 tokens, not 65"):
        compare_text(words, twin, "a text", window=65)
    assert compare_text(words, twin, "a text").tokens == 6


@pytest.mark.shared
def test_a_trained_model_in_four_bits(tmp_path: Path) -> None:
    model = shared_path("models/stories260K-hf")
    text = shared_path("data/text/tinystories_sample.txt").read_text()[:1000]
    engines = []
    for quant in ("w4g32", "f32"):
        path = graphwright.compile(model, quant=quant, check=False).save(tmp_path / f"{quant}.gw")
        engines.append(graphwright.load(path, max_sequences=1, threads=1))
    coarse, exact = engines
    assert exact.tokenizer is not None
    ids = exact.tokenizer.encode(text)  # with the BOS
    assert len(ids) < exact.context
    ours, theirs = (engine.logits(ids[:-1]) for engine in engines)
    found = compare_text(coarse, exact, text)
    check(found, plain(ours, theirs, ids[1:]), rel=1e-6)
    assert 0.05 < found.kl_mean < 0.5 and 0.6 < found.same_top < 0.95 and found.ppl_ratio > 1
