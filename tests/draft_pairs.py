"""The echo toy with a draft beside it: one that knows what it will say, nearly, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from echo_toy import EchoToy, echo_logits
from numpy.typing import NDArray
from toy_model import PLAN, VOCAB, ToyLibrary, word_tokenizer, write_toy

from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["EOS", "LARGE", "PROMPT", "SMALL", "Nearly", "Wrong", "greedy", "pair"]

LARGE = {"weights": {**PLAN["weights"], "bytes_per_token": 10**9}}  # so that guesses are worth it
SMALL = {"weights": {**PLAN["weights"], "bytes_per_token": 10**8}}
PROMPT = [11, 12, 13, 14, 15, 11, 12, 13]
EOS = [7, 20, 33, 46, 59, 72, 85]


def greedy(tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **options)


class Nearly(EchoToy):
    """The echo toy, another one at each third text, and nearly it at the others."""

    def logits_after(self, history: Sequence[int]) -> NDArray[np.float32]:
        noise = np.random.default_rng([1, *history]).standard_normal(VOCAB).astype(np.float32)
        return echo_logits(history) + noise * (6 if sum(history) % 3 == 0 else 0.1)


class Wrong(ToyLibrary):
    """Knows nothing of what the echo toy will say."""

    def logits_after(self, history: Sequence[int]) -> NDArray[np.float32]:
        return np.roll(echo_logits(history), 1)


def pair(
    folder: Path, draft: ToyLibrary | None = None, library: ToyLibrary | None = None,
    most: str = "", plan: dict[str, Any] | None = None, draft_plan: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Engine, ToyLibrary, ToyLibrary]:  # fmt: skip
    """The engine, its library and that of its draft, which knows what the model will say."""
    library, draft = library or EchoToy("largest"), draft or EchoToy()
    written: dict[str, Any] = {
        "tokenizer": word_tokenizer(),
        "generation_config": {"eos_token_id": EOS},
    }
    path = write_toy(folder / "echo.gw", **written, **{**LARGE, **(plan or {})})
    small = write_toy(folder / "small.gw", **written, **{**SMALL, **(draft_plan or {})})
    engine = Engine(
        path, library=library, draft_library=draft, speculate=f"draft:{small}{most}", **options
    )
    return engine, library, draft
