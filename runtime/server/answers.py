"""The JSON of answers: whole ones, and the chunks of streamed ones."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Protocol

from graphwright.runtime.request import FinishReason, Piece

__all__ = ["Answer", "ChatShape", "Said", "Shape", "TextShape"]


@dataclass
class Said:
    """What one choice has said so far."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, piece: Piece) -> None:
        """Adds a piece."""
        self.texts.append(piece.text)
        self.token_ids += piece.token_ids
        self.finish_reason = piece.finish_reason


class Shape(Protocol):
    """How an endpoint writes what a choice says."""

    prefix: str
    whole: str
    chunk: str
    source: str  # the parameter that holds the prompt
    opens: bool  # a choice begins with a chunk that holds no text

    def said(self, text: str) -> dict[str, Any]:
        """All that was said."""

    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """A part of it; opening: the first chunk of the choice."""


class TextShape:
    """/v1/completions."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"
    source, opens = "prompt", False

    def said(self, text: str) -> dict[str, Any]:
        """The text."""
        return {"text": text}

    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """A part of the text."""
        return {"text": text}


class ChatShape:
    """/v1/chat/completions."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"
    source, opens = "messages", True

    def said(self, text: str) -> dict[str, Any]:
        """A message of the assistant."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """A part of a message; its role comes first."""
        if opening:
            return {"delta": {"role": "assistant", "content": text}}
        return {"delta": {"content": text} if text else {}}


class Answer:
    """One answer: `choices` of them, in an endpoint's shape."""

    def __init__(self, shape: Shape, model: str, prompt_tokens: int, choices: int) -> None:
        self.said = [Said() for _ in range(choices)]
        self._shape = shape
        self._prompt_tokens = prompt_tokens
        self.cached_tokens = 0  # of those, tokens that were not computed
        self._head = {
            "id": shape.prefix + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }

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
            content = self._shape.said("".join(each.texts))
            if with_ids:
                content["token_ids"] = each.token_ids
            choices.append(_choice(index, content, each.finish_reason))
        return {
            **self._head, "object": self._shape.whole, "choices": choices, "usage": self.usage(),
        }  # fmt: skip

    def opening(self, index: int) -> dict[str, Any]:
        """The chunk that a choice begins with."""
        return self._chunk([_choice(index, self._shape.delta("", True), None)])

    def chunk(self, index: int, piece: Piece, with_ids: bool) -> dict[str, Any]:
        """The chunk of a piece."""
        content = self._shape.delta(piece.text, False)
        if with_ids:
            content["token_ids"] = list(piece.token_ids)
        return self._chunk([_choice(index, content, piece.finish_reason)])

    def closing(self) -> dict[str, Any]:
        """The chunk with the usage and no choice."""
        return {**self._chunk([]), "usage": self.usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self._shape.chunk, "choices": choices}


def _choice(index: int, content: dict[str, Any], reason: FinishReason | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": reason}
