"""Negative log-likelihood and perplexity of a text, by windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.text_windows import text_windows

__all__ = ["Evaluation", "evaluate_text", "evaluate_tokens"]


@dataclass(frozen=True)
class Evaluation:
    """tokens: how many were scored; nll: their mean, in nats; ppl: exp(nll)."""

    tokens: int
    nll: float
    ppl: float


def evaluate_text(
    engine: Engine,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """evaluate_tokens of the text, with the BOS that the tokenizer adds. Raises RequestError."""
    if engine.tokenizer is None:
        raise RequestError("the artifact has no tokenizer, so a text cannot be evaluated.")
    ids = engine.tokenizer.encode(text, special=False)
    return evaluate_tokens(
        engine,
        ids,
        bos=engine.tokenizer.bos_id,
        window=window,
        stride=stride,
        on_progress=on_progress,
    )


def evaluate_tokens(
    engine: Engine,
    ids: Sequence[int],
    *,
    bos: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores every token of `ids` exactly once, each given what stands before it in its window.

    A window is one forward pass over at most `window` tokens (default: the engine's context). With
    a `bos` it is that token, then text; without one, its first token is text and only context, so
    the very first token of all is not scored. Each window scores the next `stride` tokens (default:
    window - 1: windows then overlap in that one token of context at most); a smaller stride gives
    each scored token window - 1 - stride tokens of text before it, or all there are.
    on_progress(tokens done, tokens in all).
    """
    total, count = 0.0, 0
    for each in text_windows(ids, bos, window, stride, engine.context):
        total += _window_nll(engine, each.tokens, each.scored)
        count += each.scored
        if on_progress is not None:
            on_progress(each.done, len(ids))
    nll = total / count
    return Evaluation(count, nll, math.exp(nll) if nll < 700 else math.inf)


def _window_nll(engine: Engine, tokens: list[int], scored: int) -> float:
    """The summed negative log-likelihood of the last `scored` of `tokens`."""
    total = 0.0
    begin = len(tokens) - scored
    # The last token has no successor to predict: it is not run.
    for start, rows in engine.prefill_logits(tokens[:-1]):
        first = max(start, begin - 1)
        if first < start + len(rows):
            targets = np.asarray(tokens[first + 1 : start + len(rows) + 1])
            total += float(_nll(rows[first - start :], targets).sum())
    return total


def _nll(logits: NDArray[np.float32], targets: NDArray[np.intp]) -> NDArray[np.float64]:
    """-log softmax(logits)[target] of each row."""
    top = logits.max(axis=1, keepdims=True)
    norm = np.log(np.exp(logits - top).sum(axis=1, dtype=np.float64)) + top[:, 0]
    result: NDArray[np.float64] = norm - logits[np.arange(len(targets)), targets]
    return result
