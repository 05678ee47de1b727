"""What one artifact says of a text beside what another says: KL divergence and its companions."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.text_windows import Window, text_windows

__all__ = ["Comparison", "compare_text", "compare_tokens"]

_BLOCK = 1 << 20  # logits of each engine that are in float64 at a time

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """An engine beside a reference, over `tokens` scored tokens; each `_error` is the standard
    error of what it is named for, as if tokens were independent.

    nll, ppl: mean negative log-likelihood in nats and its exponential. ppl_ratio: ppl over
    reference_ppl; its error comes from the differences token by token. kl: the divergence of the
    reference's distribution to the engine's, sum of p_ref ln(p_ref / p), in nats a token. same_top:
    the share of tokens for which both have the same most likely one (of equal ones the lowest id).
    p_difference: the engine's probability of the text's token less the reference's.
    """

    tokens: int
    nll: float
    nll_error: float
    ppl: float
    reference_nll: float
    reference_nll_error: float
    reference_ppl: float
    ppl_ratio: float
    ppl_ratio_error: float
    kl_mean: float
    kl_mean_error: float
    kl_median: float
    kl_p90: float
    kl_p99: float
    kl_max: float
    same_top: float
    same_top_error: float
    p_difference_mean: float
    p_difference_mean_error: float
    p_difference_rms: float
    p_difference_rms_error: float


def compare_text(
    engine: Engine,
    reference: Engine,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """compare_tokens of the text, with the BOS that the tokenizer adds.

    Raises RequestError, also when the two have not the same tokenizer.
    """
    ours, theirs = engine.tokenizer, reference.tokenizer
    for each, found in ((engine, ours), (reference, theirs)):
        if found is None:
            raise RequestError(f"{each.artifact.path} has no tokenizer, so it cannot read a text.")
    assert ours is not None and theirs is not None
    _check_pair(engine, reference)
    if (ours.definition(), ours.bos_id) != (theirs.definition(), theirs.bos_id):
        raise RequestError(
            f"{engine.artifact.path} and {reference.artifact.path} have different tokenizers: "
            "only files of one model, or of models that share a tokenizer, can be compared."
        )
    ids = ours.encode(text, special=False)
    return compare_tokens(
        engine,
        reference,
        ids,
        bos=ours.bos_id,
        window=window,
        stride=stride,
        on_progress=on_progress,
    )


def compare_tokens(
    engine: Engine,
    reference: Engine,
    ids: Sequence[int],
    *,
    bos: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Both engines read `ids` side by side, by the windows of evaluate_tokens (default: the shorter
    of their contexts); of each the logits of one chunk are held, in float32.

    Raises RequestError for other vocabularies, and where a logit is not finite.
    """
    _check_pair(engine, reference)
    context = min(engine.context, reference.context)
    found: list[NDArray[np.float64]] = []
    for each in text_windows(ids, bos, window, stride, context):
        found += _window_measures(engine, reference, each)
        if on_progress is not None:
            on_progress(each.done, len(ids))
    measures = np.concatenate(found, axis=1)
    if measures.shape[1] < 2:
        raise RequestError("standard errors need two tokens that are scored; the text has one.")
    return _summary(measures)


def _check_pair(engine: Engine, reference: Engine) -> None:
    if engine is reference:
        raise RequestError("an engine reads one text at a time: compare it with another one.")
    sizes = engine.plan.vocab_size, reference.plan.vocab_size
    if sizes[0] != sizes[1]:
        raise RequestError(
            f"{engine.artifact.path} has a vocabulary of {sizes[0]} tokens and "
            f"{reference.artifact.path} one of {sizes[1]}: they cannot be compared."
        )


def _window_measures(
    engine: Engine, reference: Engine, window: Window
) -> Iterator[NDArray[np.float64]]:
    """The measures [5, n] of the tokens that the window scores, block by block."""
    tokens = window.tokens
    begin = len(tokens) - window.scored - 1  # the row that predicts the first of them
    size = max(1, _BLOCK // engine.plan.vocab_size)
    with closing(_both(engine, reference, tokens[:-1])) as pairs:
        for start, ours, theirs in pairs:
            for first in range(max(0, begin - start), len(ours), size):
                block = slice(first, min(first + size, len(ours)))
                targets = np.asarray(tokens[start + first + 1 : start + block.stop + 1])
                for each, rows in ((engine, ours[block]), (reference, theirs[block])):
                    _check_finite(each, rows, tokens, start + first)
                yield _measures(ours[block], theirs[block], targets)


def _both(
    engine: Engine, reference: Engine, tokens: Sequence[int]
) -> Generator[tuple[int, Rows, Rows], None, None]:
    """(position, rows of `engine`, as many of `reference`): their chunks may differ in length."""
    at, held = 0, [np.empty((0, engine.plan.vocab_size), np.float32)] * 2
    with (
        closing(engine.prefill_logits(tokens)) as ours,
        closing(reference.prefill_logits(tokens)) as theirs,
    ):
        while at < len(tokens):
            for number, stream in enumerate((ours, theirs)):
                if not len(held[number]):
                    held[number] = next(stream)[1]
            count = min(len(each) for each in held)
            yield at, held[0][:count], held[1][:count]
            held = [each[count:] for each in held]
            at += count


def _check_finite(engine: Engine, rows: Rows, tokens: Sequence[int], position: int) -> None:
    wrong = np.argwhere(~np.isfinite(rows))
    if len(wrong):
        row, column = (int(each) for each in wrong[0])
        raise RequestError(
            f"{engine.artifact.path} gives the token {column} the logit {rows[row, column]} after "
            f"the token {tokens[position + row]}, number {position + row} of its window: a "
            "divergence is defined for finite logits only."
        )


def _measures(ours: Rows, theirs: Rows, targets: NDArray[np.intp]) -> NDArray[np.float64]:
    """[5, n]: nll, the reference's nll, KL divergence, same top, difference of probabilities."""
    log_p, log_q = _log_softmax(theirs), _log_softmax(ours)
    rows = np.arange(len(targets))
    nll, reference_nll = -log_q[rows, targets], -log_p[rows, targets]
    same = log_p.argmax(axis=1) == log_q.argmax(axis=1)
    np.subtract(log_p, log_q, out=log_q)
    kl = np.einsum("rv,rv->r", np.exp(log_p, out=log_p), log_q)
    # It cannot be negative: what is below zero is rounding.
    kl = np.maximum(kl, 0.0)
    return np.stack([nll, reference_nll, kl, same, np.exp(-nll) - np.exp(-reference_nll)])


def _log_softmax(logits: Rows) -> NDArray[np.float64]:
    found = logits.astype(np.float64)
    found -= found.max(axis=1, keepdims=True)
    found -= np.log(np.exp(found).sum(axis=1, keepdims=True))
    return found


def _summary(measures: NDArray[np.float64]) -> Comparison:
    nll, reference_nll, kl, same, difference = measures
    squares = difference**2
    rms = math.sqrt(squares.mean())
    ratio = _exp(float((nll - reference_nll).mean()))
    median, p90, p99 = (float(each) for each in np.quantile(kl, [0.5, 0.9, 0.99]))
    return Comparison(
        tokens=len(nll),
        nll=float(nll.mean()),
        nll_error=_error(nll),
        ppl=_exp(float(nll.mean())),
        reference_nll=float(reference_nll.mean()),
        reference_nll_error=_error(reference_nll),
        reference_ppl=_exp(float(reference_nll.mean())),
        ppl_ratio=ratio,
        ppl_ratio_error=ratio * _error(nll - reference_nll),
        kl_mean=float(kl.mean()),
        kl_mean_error=_error(kl),
        kl_median=median,
        kl_p90=p90,
        kl_p99=p99,
        kl_max=float(kl.max()),
        same_top=float(same.mean()),
        same_top_error=_error(same),
        p_difference_mean=float(difference.mean()),
        p_difference_mean_error=_error(difference),
        p_difference_rms=rms,
        # The error of the mean square, by the slope of the root there.
        p_difference_rms_error=_error(squares) / (2 * rms) if rms else 0.0,
    )


def _error(values: NDArray[np.float64]) -> float:
    """The standard error of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
