"""The JSON of answers: whole ones, and the chunks of streamed ones."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graphwright.runtime.log_probabilities import TokenLogprobs
from graphwright.runtime.request import FinishReason, Piece
from graphwright.runtime.server.echo import Echo
from graphwright.runtime.server.shapes import Shape

__all__ = ["Answer", "Said"]


@dataclass
class Said:
    """What one choice has said so far. logprobs: one for each token, if they were asked for. shown:
    characters that chunks have told, where the shape holds some back.
    """

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None
    shown: int = 0

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)

    def add(self, piece: Piece) -> None:
        """Adds a piece."""
        self.texts.append(piece.text)
        self.token_ids += piece.token_ids
        self.finish_reason = piece.finish_reason
        if piece.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += piece.logprobs


class Answer:
    """One answer, in an endpoint's shape. echoes: one for each choice; None where it begins with
    what was generated.
    """

    def __init__(
        self, shape: Shape, model: str, prompt_tokens: int, echoes: Sequence[Echo | None]
    ) -> None:
        self.said = [Said() for _ in echoes]
        self._shape, self._echoes = shape, echoes
        self._prompt_tokens = prompt_tokens
        self.cached_tokens = 0  # of those, tokens that were not computed
        self._head = {
            "id": shape.prefix + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }

    def add(self, index: int, piece: Piece) -> Piece:
        """Adds a piece to what a choice has said. The piece as it is told."""
        said, echo = self.said[index], self._echoes[index]
        if echo is not None:
            piece = echo.told(piece, first=not said.texts)
        said.add(piece)
        return piece

    def usage(self) -> dict[str, Any]:
        """Tokens in and out; a prompt counts once, however many choices it has."""
        generated = sum(len(each.token_ids) for each in self.said)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def whole(self, with_ids: bool) -> dict[str, Any]:
        """Everything at once."""
        choices = []
        for index, each in enumerate(self.said):
            content = self._shape.said(each.text)
            if with_ids:
                content["token_ids"] = each.token_ids
            choices.append(self._choice(index, content, each.finish_reason, each.logprobs))
        return {
            **self._head, "object": self._shape.whole, "choices": choices, "usage": self.usage(),
        }  # fmt: skip

    def opening(self, index: int) -> dict[str, Any]:
        """The chunk that a choice begins with."""
        return self._chunk([self._choice(index, self._shape.delta("", True), None, None)])

    def chunk(
        self, index: int, piece: Piece, with_ids: bool, always: bool
    ) -> dict[str, Any] | None:
        """The chunk of a piece, which has been added to what was said; None: it would say nothing,
        and is not `always` wanted.
        """
        text, last = self._shown(index, piece), piece.finish_reason is not None
        if not (text or last or always):
            return None
        content = self._shape.last(text) if last else self._shape.delta(text, False)
        if with_ids:
            content["token_ids"] = list(piece.token_ids)
        return self._chunk([self._choice(index, content, piece.finish_reason, piece.logprobs)])

    def _shown(self, index: int, piece: Piece) -> str:
        """What the chunk of a piece shows."""
        if not self._shape.holds:
            return piece.text
        said = self.said[index]
        text, start = said.text, said.shown
        if piece.finish_reason is None:
            said.shown = max(start, self._shape.visible(text))
            return text[start : said.shown]
        return text[start:]

    def closing(self) -> dict[str, Any]:
        """The chunk with the usage and no choice."""
        return {**self._chunk([]), "usage": self.usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self._shape.chunk, "choices": choices}

    def _choice(
        self, index: int, content: dict[str, Any], reason: FinishReason | None,
        logprobs: Sequence[TokenLogprobs] | None,
    ) -> dict[str, Any]:  # fmt: skip
        found = None if logprobs is None else self._shape.logprobs(logprobs)
        text = self.said[index].text if reason is not None and self._shape.holds else ""
        ended = None if reason is None else self._shape.reason(reason, text)
        return {"index": index, **content, "logprobs": found, "finish_reason": ended}
