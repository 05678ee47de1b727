"""Tools that a chat may call: which ones a body offers, and which calls must be the answer.

Calls that the request demands are JSON that the answer is held to. Those that the model is free to
make are read from its text, by the format that its template shows (runtime/tool_format.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from graphwright.runtime.grammar import JSON_WHITE_SPACE, Grammar
from graphwright.runtime.server.body import Body
from graphwright.runtime.server.errors import ApiError
from graphwright.runtime.server.shapes import ChatShape
from graphwright.runtime.server.structured import Structure
from graphwright.runtime.server.tool_calls import CallShape, CallsShape, FreeShape, beginning
from graphwright.runtime.tokenizer import Tokenizer
from graphwright.runtime.tool_format import ToolFormat

__all__ = ["Tools", "take_tools"]

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class Tools:
    """The functions of a body. definitions: as templates show them. parameters: a JSON schema of
    each by its name. called: the one that must be called, None: any of them. several: is more than
    one call allowed? form: where calls are free, how the model writes them; else None.
    """

    definitions: list[dict[str, Any]]
    parameters: dict[str, dict[str, Any]]
    called: str | None
    several: bool
    form: ToolFormat | None

    def structure(self) -> Structure | None:
        """What the answer must be: the arguments of the one call, or a list of calls; None: it is
        free."""
        if self.form is not None:
            return None
        if self.called is not None:
            return "tools", Grammar.json_schema(self.parameters[self.called])
        calls = " | ".join(
            f"{json.dumps(beginning(name))} arguments_{number} {json.dumps('}')}"
            for number, name in enumerate(self.parameters)
        )
        more = ' (", " call)*' if self.several else ""
        lines = [f'start: "[" call{more} "]"', f"call: {calls}"]
        for number, schema in enumerate(self.parameters.values()):
            spaced = {"x-guidance": {"whitespace_pattern": JSON_WHITE_SPACE}, **schema}
            lines.append(f"arguments_{number}: %json {json.dumps(spaced)}")
        return "tools", Grammar.context_free("\n".join(lines))

    def shape(self, tokenizer: Tokenizer | None) -> ChatShape:
        """How answers are written."""
        if self.form is not None:
            return FreeShape(tokenizer, list(self.parameters), self.form, self.several)
        if self.called is not None:
            return CallShape(tokenizer, self.called)
        return CallsShape(tokenizer, list(self.parameters))


def take_tools(body: Body, form: Callable[[], ToolFormat | None]) -> Tools | None:
    """`tools`, `tool_choice` and `parallel_tool_calls`; None when no tool may be called. form: how
    the model writes calls, if that is known. Raises ApiError 400.
    """
    given, choice = body.take("tools", list, []), body.take("tool_choice", default="auto")
    several = body.take("parallel_tool_calls", bool, True)
    if not given:
        if choice not in ("none", "auto"):
            raise ApiError(400, "'tool_choice' needs 'tools'.",
                           param="tool_choice", code="invalid_value")  # fmt: skip
        return None
    definitions = [_function(each, f"tools[{number}]") for number, each in enumerate(given)]
    parameters = {each["name"]: each.get("parameters", _NO_PARAMETERS) for each in definitions}
    if len(parameters) < len(definitions):
        raise ApiError(400, "two of 'tools' have the same name.", param="tools",
                       code="invalid_value")  # fmt: skip
    if choice == "auto":
        return Tools(given, parameters, None, several, _known(form()))
    called = _called(choice, parameters)
    return None if choice == "none" else Tools(given, parameters, called, several, None)


def _known(form: ToolFormat | None) -> ToolFormat:
    if form is None:
        raise ApiError(
            400,
            "the model's chat template shows no calls with arguments in JSON, so none could be "
            "found in an answer: give 'tool_choice' as 'required', as one function, or as 'none'.",
            param="tool_choice",
            code="unsupported_parameter",
        )
    return form


def _function(value: Any, where: str) -> dict[str, Any]:
    tool = Body(value, where)
    kind, found = tool.take("type", str), tool.take("function", dict, {})
    tool.close()
    if kind != "function":
        raise ApiError(400, f"'{where}.type' must be 'function', not {kind!r}.",
                       param=f"{where}.type", code="invalid_value")  # fmt: skip
    function = Body(found, f"{where}.function")
    name, schema = function.take("name", str, ""), function.take("parameters", dict)
    function.take("description", str)
    function.take("strict", bool)  # arguments keep to the schema either way
    function.close()
    if not _NAME.fullmatch(name):
        raise ApiError(400, f"'{where}.function.name' must be 1 to 64 letters, digits, _ or -, not "
                       f"{name!r}.", param=f"{where}.function.name",
                       code="invalid_value")  # fmt: skip
    return {"name": name} if schema is None else {"name": name, "parameters": schema}


def _called(choice: Any, names: Iterable[str]) -> str | None:
    """The name of the function that must be called. Raises ApiError 400."""
    if choice in ("none", "required"):
        return None
    name = choice
    if isinstance(choice, dict):
        chosen = Body(choice, "tool_choice")
        kind, found = chosen.take("type", str), chosen.take("function", dict, {})
        chosen.close()
        function = Body(found, "tool_choice.function")
        name = function.take("name", str)
        function.close()
        if kind == "function" and name in names:
            return str(name)
    raise ApiError(400, "'tool_choice' must be 'auto', 'none', 'required' or one of the functions "
                   f"in 'tools', not {name!r}.", param="tool_choice",
                   code="invalid_value")  # fmt: skip
