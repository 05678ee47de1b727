"""A text cut into windows, so that every token is scored once: one forward pass each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graphwright.runtime.errors import RequestError

__all__ = ["Window", "text_windows"]


@dataclass(frozen=True)
class Window:
    """The last `scored` of `tokens` are scored, each given those before it; `done` tokens of the
    text are then.
    """

    tokens: list[int]
    scored: int
    done: int


def text_windows(
    ids: Sequence[int], bos: int | None, window: int | None, stride: int | None, context: int
) -> Iterator[Window]:
    """The windows of `ids`, as evaluate_tokens describes them; `context` is the longest.

    Raises RequestError when it is called, not when it is read.
    """
    window = context if window is None else window
    stride = window - 1 if stride is None else stride
    if not 2 <= window <= context:
        raise RequestError(f"the window must be from 2 to {context} tokens, not {window}.")
    if not 1 <= stride <= window - 1:
        raise RequestError(f"the stride must be from 1 to window - 1 = {window - 1}, not {stride}.")
    first = 0 if bos is not None else 1
    if len(ids) <= first:
        raise RequestError(f"the text has {len(ids)} tokens; there is nothing to score.")
    return _cut(ids, [] if bos is None else [bos], first, stride, window - 1 - stride)


def _cut(
    ids: Sequence[int], prefix: list[int], first: int, stride: int, overlap: int
) -> Iterator[Window]:
    done = first
    while done < len(ids):
        end = min(done + stride, len(ids))
        begin = max(0, done - first - overlap)
        yield Window([*prefix, *ids[begin:end]], end - done, end)
        done = end
