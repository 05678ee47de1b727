"""The JSON of answers: whole ones, and the chunks of streamed ones."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from graphwright.runtime.log_probabilities import TokenLogprobs
from graphwright.runtime.request import FinishReason, Piece
from graphwright.runtime.server.log_probabilities import chat_logprobs, text_logprobs
from graphwright.runtime.tokenizer import Tokenizer

__all__ = ["Answer", "ChatShape", "Said", "Shape", "TextShape"]


@dataclass
class Said:
    """What one choice has said so far. logprobs: one for each token, if they were asked for."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None

    def add(self, piece: Piece) -> None:
        """Adds a piece."""
        self.texts.append(piece.text)
        self.token_ids += piece.token_ids
        self.finish_reason = piece.finish_reason
        if piece.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += piece.logprobs


class Shape(Protocol):
    """How an endpoint writes what a choice says."""

    prefix: str
    whole: str
    chunk: str
    source: str  # the parameter that holds the prompt
    opens: bool  # a choice begins with a chunk that holds no text
    at_once: bool  # chunks have the text of a choice when it is whole

    def said(self, text: str) -> dict[str, Any]:
        """All that was said."""

    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """A part of it; opening: the first chunk of the choice."""

    def logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """The log probabilities of tokens."""

    def reason(self, reason: FinishReason | None) -> str | None:
        """Why a choice ended, in the API's word."""


class TextShape:
    """/v1/completions."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"
    source, opens, at_once = "prompt", False, False

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def said(self, text: str) -> dict[str, Any]:
        """The text."""
        return {"text": text}

    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """A part of the text."""
        return {"text": text}

    def logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Four lists."""
        return text_logprobs(found, self._tokenizer)

    def reason(self, reason: FinishReason | None) -> str | None:
        """The same word."""
        return reason


class ChatShape:
    """/v1/chat/completions."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"
    source, opens, at_once = "messages", True, False

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def said(self, text: str) -> dict[str, Any]:
        """A message of the assistant."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """A part of a message; its role comes first."""
        if opening:
            return {"delta": {"role": "assistant", "content": text}}
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """An object a token."""
        return chat_logprobs(found, self._tokenizer)

    def reason(self, reason: FinishReason | None) -> str | None:
        """The same word."""
        return reason


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
            choices.append(self._choice(index, content, each.finish_reason, each.logprobs))
        return {
            **self._head, "object": self._shape.whole, "choices": choices, "usage": self.usage(),
        }  # fmt: skip

    def opening(self, index: int) -> dict[str, Any]:
        """The chunk that a choice begins with."""
        return self._chunk([self._choice(index, self._shape.delta("", True), None, None)])

    def chunk(self, index: int, piece: Piece, with_ids: bool) -> dict[str, Any]:
        """The chunk of a piece, which has been added to what was said."""
        content = self._shape.delta(self._shown(index, piece), False)
        if with_ids:
            content["token_ids"] = list(piece.token_ids)
        return self._chunk([self._choice(index, content, piece.finish_reason, piece.logprobs)])

    def shows(self, index: int, piece: Piece) -> bool:
        """Does the chunk of a piece say anything?"""
        return bool(piece.finish_reason or self._shown(index, piece))

    def _shown(self, index: int, piece: Piece) -> str:
        if not self._shape.at_once:
            return piece.text
        return "".join(self.said[index].texts) if piece.finish_reason else ""

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
        ended = self._shape.reason(reason)
        return {"index": index, **content, "logprobs": found, "finish_reason": ended}
