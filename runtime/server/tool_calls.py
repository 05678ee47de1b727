"""Calls of tools in an answer: how a list of them is written, read back, and sent."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from graphwright.runtime.request import FinishReason
from graphwright.runtime.server.shapes import ChatShape
from graphwright.runtime.tokenizer import Tokenizer
from graphwright.runtime.tool_format import ToolFormat

__all__ = ["CallShape", "CallsShape", "FreeShape", "beginning"]


def beginning(name: str) -> str:
    """What a call says before its arguments."""
    return f'{{"name": {json.dumps(name)}, "arguments": '


class CallShape(ChatShape):
    """One call of a function, whose arguments are the answer's text."""

    def __init__(self, tokenizer: Tokenizer | None, name: str) -> None:
        super().__init__(tokenizer)
        self._name = name

    def said(self, text: str) -> dict[str, Any]:
        """A message with one call."""
        return _message([_call(self._name, text)])

    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """The call, then parts of its arguments."""
        if opening:
            call = {"index": 0, **_call(self._name, "")}
            return {"delta": {"role": "assistant", "content": None, "tool_calls": [call]}}
        part = {"index": 0, "function": {"arguments": text}}
        return {"delta": {"tool_calls": [part]} if text else {}}


class CallsShape(ChatShape):
    """A list of calls."""

    holds = True

    def __init__(self, tokenizer: Tokenizer | None, names: Sequence[str]) -> None:
        super().__init__(tokenizer)
        self._names = names

    def said(self, text: str) -> dict[str, Any]:
        """A message with the calls of the list."""
        return _message([_call(*each) for each in _calls(text, self._names)])

    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """Nothing but the role."""
        return {"delta": {"role": "assistant", "content": None} if opening else {}}

    def visible(self, text: str) -> int:
        """Nothing."""
        return 0

    def last(self, text: str) -> dict[str, Any]:
        """All calls."""
        return {"delta": _numbered([_call(*each) for each in _calls(text, self._names)])}

    def reason(self, reason: FinishReason, text: str) -> str:
        """The API has a name of its own for calls that the model has chosen."""
        return "tool_calls" if reason == "stop" else reason


class FreeShape(ChatShape):
    """Text, calls in the model's own format, or both. several: all calls are told, not the first.

    Once a call may have begun, chunks have text no more until the choice has ended.
    """

    holds = True

    def __init__(
        self, tokenizer: Tokenizer | None, names: Sequence[str], form: ToolFormat, several: bool
    ) -> None:
        super().__init__(tokenizer)
        self._names, self._form, self._several = names, form, several

    def said(self, text: str) -> dict[str, Any]:
        """A message, with the calls that are in its text."""
        content, calls = self._read(text)
        return _message(calls, content) if calls else super().said(text)

    def visible(self, text: str) -> int:
        """What stands before a call, if there is one."""
        return self._form.visible(text)

    def last(self, text: str) -> dict[str, Any]:
        """What was held back, as text and calls."""
        content, calls = self._read(text)
        return {"delta": {**({"content": content} if content else {}), **_numbered(calls)}}

    def reason(self, reason: FinishReason, text: str) -> str:
        """Whether there are calls."""
        return "tool_calls" if reason == "stop" and self._read(text)[1] else reason

    def _read(self, text: str) -> tuple[str | None, list[dict[str, Any]]]:
        content, found = self._form.read(text, self._names)
        calls = [_call(*each) for each in (found if self._several else found[:1])]
        return (content if content.strip() or not calls else None), calls


def _calls(text: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, arguments as they are written) of each call in a list, also in one that was cut."""
    at, decoder = 1, json.JSONDecoder()
    while at < len(text):
        name = next((each for each in names if text.startswith(beginning(each), at)), None)
        if name is None:
            return
        first = at + len(beginning(name))
        try:
            _, end = decoder.raw_decode(text, first)
        except ValueError:
            end = len(text)
        yield name, text[first:end]
        at = end + len("}, ")


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _numbered(calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"tool_calls": [{"index": n, **each} for n, each in enumerate(calls)]} if calls else {}


def _message(calls: list[dict[str, Any]], content: str | None = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": None, "tool_calls": calls}
    return {"message": message}
