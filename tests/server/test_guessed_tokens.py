"""Guessed tokens behind the server: streams say what they say without them; all is counted."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from echo_toy import EchoToy, echo_greedy, echo_logits
from numpy.typing import NDArray
from served_toy import chat_toy, served
from toy_model import PLAN

from graphwright.runtime.engine import Engine


class NearlyEcho(EchoToy):
    """Guesses wrong at every third text or so."""

    def logits_after(self, history: Sequence[int]) -> NDArray[np.float32]:
        return echo_logits(history[:-1] if sum(history) % 3 == 0 else history)


GREEDY = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}


@pytest.mark.parametrize("kind", ["lookup", "draft"])
def test_streams_have_every_token_and_metrics_count_guesses(tmp_path: Path, kind: str) -> None:
    weights = {**PLAN["weights"], "bytes_per_token": 10**9 if kind == "draft" else 256}
    small = chat_toy(tmp_path / "small.gw")
    engine = Engine(
        chat_toy(tmp_path / "toy.gw", weights=weights), library=EchoToy("largest"),
        draft_library=NearlyEcho(), max_sequences=2, prefix_cache=True,
        speculate=f"draft:{small}" if kind == "draft" else "lookup",
    )  # fmt: skip
    prompts = [[5] * 9, [6, 7, 8, 9] * 3, [5] * 9]
    names = ("drafts", "draft_tokens", "accepted_tokens")
    with served(engine) as toy:
        assert all(toy.metric(f"graphwright_spec_decode_num_{name}_total") == 0 for name in names)
        with ThreadPoolExecutor(3) as pool:
            answers = list(
                pool.map(
                    lambda prompt: toy.stream(
                        "/v1/completions", prompt=prompt, max_tokens=30, **GREEDY
                    ),
                    prompts,
                )
            )
        for prompt, events in zip(prompts, answers, strict=True):
            said = [i for event in events for each in event["choices"] for i in each["token_ids"]]
            assert said == echo_greedy(prompt, 30)
        toy.wait_for(0, 0)
        assert toy.is_idle()
        found = [toy.metric(f"graphwright_spec_decode_num_{name}_total") for name in names]
        known = engine.statistics
        seconds = toy.metric("graphwright_spec_decode_draft_seconds_total")
        assert seconds == pytest.approx(known.draft_seconds, abs=1e-6) and seconds > 0
        assert found == [known.drafts, known.drafted_tokens, known.accepted_tokens]
        assert 0 < found[2] < found[1] and 0 < found[0] <= found[1]
        assert toy.metric("graphwright_generated_tokens_total") == 3 * 30
