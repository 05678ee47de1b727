"""How a model writes calls of tools: found by letting its chat template write some.

A template knows how the model's own calls look in a conversation. So it is asked to write one, and
two, with a name and arguments that occur nowhere else, and what stands around those is the format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from graphwright.runtime.chat_template import ChatTemplate
from graphwright.runtime.errors import RequestError

__all__ = ["ToolFormat", "find_tool_format"]

_USER, _SAID = "qU7xqU7", "qS4zqS4"
_NAMES, _IDS = ("qN1aqN1", "qN2bqN2"), ("qI5cqI5c0", "qI6dqI6d0")  # nine letters: some insist
_ARGUMENTS = ({"qK3eqK3": "qV8fqV8"}, {"qK9gqK9": "qV0hqV0"})
_WORDS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class ToolFormat:
    """What stands before the name of a call, between its name and its arguments (JSON), between
    arguments and the name of the next call, and behind the last. White space may be any. following
    is None where a template writes one call only. as_text: the template wants the arguments of
    earlier calls as the text of their JSON, not as an object.
    """

    before: str
    between: str
    following: str | None
    behind: str
    as_text: bool

    def read(self, text: str, names: Collection[str]) -> tuple[str, list[tuple[str, str]]]:
        """The text without its calls of functions in `names`, and (name, arguments) of those.

        What looks like a call but has another name, or no JSON, or was cut, stays text.
        """
        found: list[tuple[str, str]] = []
        rest, start, at = [], 0, 0
        first = _pattern(self.before, _NAME, self.between)
        while (match := first.search(text, at)) is not None:
            calls, end = self._row(text, match, names)
            if calls:
                rest.append(text[start : match.start()])
                found += calls
                start = at = end
            else:
                at = match.start() + 1
        return "".join([*rest, text[start:]]), found

    def _row(
        self, text: str, match: re.Match[str] | None, names: Collection[str]
    ) -> tuple[list[tuple[str, str]], int]:
        """The calls that stand together where one was found, and where they end."""
        calls: list[tuple[str, str]] = []
        at = 0
        while match is not None and match["name"] in names:
            start = _skip_spaces(text, match.end())
            end = _json_end(text, start)
            if end is None:
                break
            calls.append((match["name"], text[start:end]))
            at, match = end, None
            if self.following is not None:
                joint = _pattern(self.following, _NAME, self.between)
                match = joint.match(text, _skip_spaces(text, at))
        closing = _pattern(self.behind).match(text, _skip_spaces(text, at))
        return calls, at if closing is None else closing.end()

    def visible(self, text: str) -> int:
        """How much of a text that goes on is surely no part of a call."""
        words = _WORDS.findall(self.before)
        telling = next((n for n, each in enumerate(words) if each[0].isalnum()), len(words) - 1)
        opening = words[: telling + 1]
        if not opening:
            return 0
        found = _pattern(" ".join(opening)).search(text)
        return _may_begin("".join(opening), text) if found is None else found.start()


_NAME = r"(?P<name>[\w.-]+)"


def find_tool_format(template: ChatTemplate, shown: Callable[[str], str]) -> ToolFormat | None:
    """The format of a template; None when it has none, or one in which arguments are not JSON.

    shown: from a text to how it looks when the model has said it, without special tokens.
    """
    return _find(template, shown, False) or _find(template, shown, True)


def _find(template: ChatTemplate, shown: Callable[[str], str], as_text: bool) -> ToolFormat | None:
    try:
        plain = _tail(template, {"content": _SAID})
        one = _tail(template, _calls(1, as_text))
    except (RequestError, ValueError):
        return None
    header, _, footer = plain.partition(_SAID)
    if not one.startswith(header) or _NAMES[0] not in one:
        return None
    before, _, rest = one[len(header) :].partition(_NAMES[0])
    start = _json_start(rest, _ARGUMENTS[0])
    if start is None:
        return None
    behind = rest[start + len(_written(rest, start)) :].removesuffix(footer)
    following = _following(template, as_text)
    found = [shown(each) for each in (before, rest[:start], behind)]
    if not (found[0].strip() or found[1].strip()):
        return None
    joint = None if following is None else shown(following)
    return ToolFormat(found[0], found[1], joint, found[2], as_text)


def _following(template: ChatTemplate, as_text: bool) -> str | None:
    """What stands between the arguments of a call and the name of the next."""
    try:
        two = _tail(template, _calls(2, as_text))
    except (RequestError, ValueError):
        return None
    start = _json_start(two, _ARGUMENTS[0])
    if start is None or _NAMES[1] not in two[start:]:
        return None
    return two[start + len(_written(two, start)) :].partition(_NAMES[1])[0]


def _calls(count: int, as_text: bool) -> dict[str, Any]:
    calls = []
    for n in range(count):
        arguments = json.dumps(_ARGUMENTS[n]) if as_text else _ARGUMENTS[n]
        function = {"name": _NAMES[n], "arguments": arguments}
        calls.append({"id": _IDS[n], "type": "function", "function": function})
    return {"content": "", "tool_calls": calls}


def _tail(template: ChatTemplate, answer: dict[str, Any]) -> str:
    """What a template writes behind the user's words."""
    schema = {"type": "object", "properties": {}}
    functions = [{"name": name, "description": "", "parameters": schema} for name in _NAMES]
    tools = [{"type": "function", "function": each} for each in functions]
    messages = [{"role": "user", "content": _USER}, {"role": "assistant", **answer}]
    text = template.render(messages, add_generation_prompt=False, tools=tools)
    return text[text.rindex(_USER) + len(_USER) :]


def _json_start(text: str, arguments: dict[str, str]) -> int | None:
    """Where these arguments stand as JSON."""
    (key,) = arguments
    start = text.rfind("{", 0, max(text.find(key), 0))
    if start < 0 or json.loads(_written(text, start) or "null") != arguments:
        return None
    return start


def _written(text: str, start: int) -> str:
    end = _json_end(text, start)
    return "" if end is None else text[start:end]


def _skip_spaces(text: str, start: int) -> int:
    return len(text) - len(text[start:].lstrip())


def _json_end(text: str, start: int) -> int | None:
    """Where the JSON object that begins there ends."""
    if not text.startswith("{", start):
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def _pattern(*parts: str) -> re.Pattern[str]:
    """Literal parts, with any white space between their words, and `_NAME` as it is. An id may be
    any."""
    words: list[str] = []
    for part in parts:
        if part is _NAME:
            words.append(part)
        else:
            found = _WORDS.findall(part)
            words += [r"[\w-]+" if word in _IDS else re.escape(word) for word in found]
    return re.compile(r"\s*".join(words))


def _may_begin(opening: str, text: str) -> int:
    """Where the end of a text begins that may be the beginning of `opening`, spaces aside."""
    for start in range(max(0, len(text) - 2 * len(opening) - 8), len(text)):
        squeezed = "".join(text[start:].split())
        if opening.startswith(squeezed):
            return start
    return len(text)
