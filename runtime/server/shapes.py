"""How the endpoints write what a choice says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from graphwright.runtime.log_probabilities import TokenLogprobs
from graphwright.runtime.request import FinishReason
from graphwright.runtime.server.log_probabilities import chat_logprobs, text_logprobs
from graphwright.runtime.tokenizer import Tokenizer

__all__ = ["ChatShape", "Shape", "TextShape"]


class Shape(ABC):
    """What is said as JSON, whole and in parts. source: the parameter that holds the prompt. opens:
    a choice begins with a chunk that holds no text. holds: some of the text may have to wait for
    the end of a choice, as `visible` and `last` say.
    """

    prefix: ClassVar[str]
    whole: ClassVar[str]
    chunk: ClassVar[str]
    source: ClassVar[str]
    opens: ClassVar[bool] = False
    holds: ClassVar[bool] = False

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    @abstractmethod
    def said(self, text: str) -> dict[str, Any]:
        """All that was said."""

    @abstractmethod
    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """A part of it; opening: the first chunk of the choice."""

    @abstractmethod
    def logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """The log probabilities of tokens."""

    def visible(self, text: str) -> int:
        """How much of what was said so far may be shown."""
        return len(text)

    def last(self, text: str) -> dict[str, Any]:
        """What was not shown when the choice ended."""
        return self.delta(text, False)

    def reason(self, reason: FinishReason, text: str) -> str:
        """Why a choice ended that said `text`, in the API's word."""
        return reason


class TextShape(Shape):
    """/v1/completions."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"
    source = "prompt"

    def said(self, text: str) -> dict[str, Any]:
        """The text."""
        return {"text": text}

    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """A part of the text."""
        return {"text": text}

    def logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Four lists."""
        return text_logprobs(found, self._tokenizer)


class ChatShape(Shape):
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

    def logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """An object a token."""
        return chat_logprobs(found, self._tokenizer)
