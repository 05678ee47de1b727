"""Calls of tools in an answer: how a list of them is written, read back, and sent."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from graphwright.runtime.request import FinishReason
from graphwright.runtime.server.answers import ChatShape
from graphwright.runtime.tokenizer import Tokenizer

__all__ = ["CallShape", "CallsShape", "beginning"]


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

    at_once = True

    def __init__(self, tokenizer: Tokenizer | None, names: Sequence[str]) -> None:
        super().__init__(tokenizer)
        self._names = names

    def said(self, text: str) -> dict[str, Any]:
        """A message with the calls of the list."""
        return _message([_call(*each) for each in _calls(text, self._names)])

    def delta(self, text: str, opening: bool) -> dict[str, Any]:
        """The calls of the whole list."""
        if opening:
            return {"delta": {"role": "assistant", "content": None}}
        calls = [_call(*each) for each in _calls(text, self._names)]
        numbered = [{"index": number, **each} for number, each in enumerate(calls)]
        return {"delta": {"tool_calls": numbered} if numbered else {}}

    def reason(self, reason: FinishReason | None) -> str | None:
        """The API has a name of its own for calls that the model has chosen."""
        return "tool_calls" if reason == "stop" else reason


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


def _message(calls: list[dict[str, Any]]) -> dict[str, Any]:
    content = {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
    return {"message": content}
