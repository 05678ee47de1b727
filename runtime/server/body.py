"""A request's JSON object, of which every key is either taken, known to be harmless, or refused."""

from __future__ import annotations

import json
import math
from typing import Any, overload

from starlette.requests import Request

from graphwright.runtime.server.errors import ApiError

__all__ = ["Body", "read_body"]

_LARGEST = 16 << 20  # bytes

# Keys that change nothing in the answer, by the API's own definition.
_HARMLESS = frozenset(
    ["metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier",
     "store", "user"]
)  # fmt: skip
# Keys that would change the answer, each with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "prediction": (),
    "reasoning_effort": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_NAMES = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "a text",
}


class Body:
    """Takes values out by name and kind; `close` refuses what is left. null is as if left out."""

    def __init__(self, values: Any, where: str = "") -> None:
        if not isinstance(values, dict):
            raise ApiError(
                400, f"{where or 'the body'} must be a JSON object, not {_short(values)}."
            )
        self._where = f"{where}." if where else ""
        self._values = {name: each for name, each in values.items() if each is not None}

    @overload
    def take(self, name: str, kind: type[bool], default: bool) -> bool: ...
    @overload
    def take(self, name: str, kind: type[int], default: int) -> int: ...
    @overload
    def take(self, name: str, kind: type[Any] | None = None, default: Any = None) -> Any: ...
    def take(self, name: str, kind: Any = None, default: Any = None) -> Any:
        """The value of `name`, of `kind` (None: whichever). Raises ApiError 400."""
        if name not in self._values:
            return default
        value = self._values.pop(name)
        if kind is float:
            good = type(value) in (int, float) and _is_finite(value)
        else:
            good = kind is None or type(value) is kind
        if not good:
            name = self.path(name)
            raise ApiError(400, f"'{name}' must be {_NAMES[kind]}, not {_short(value)}.",
                           param=name, code="invalid_type")  # fmt: skip
        return value

    def path(self, name: str) -> str:
        """The name of a key, with where this object is in the body."""
        return self._where + name

    def close(self) -> None:
        """Raises ApiError 400 that names the first key which asks for what the server cannot do."""
        for key, value in self._values.items():
            name = self.path(key)
            if key in _HARMLESS and not self._where:
                continue
            if key not in _UNSUPPORTED or self._where:
                raise ApiError(400, f"the parameter {_short(name)} is unknown; leave it out.",
                               param=name, code="unknown_parameter")  # fmt: skip
            neutral = _UNSUPPORTED[key]
            if not any(type(value) is type(each) and value == each for each in neutral):
                raise ApiError(
                    400,
                    f"'{name}' is not supported by this server; leave it out.",
                    param=name,
                    code="unsupported_parameter",
                )


async def read_body(request: Request) -> Body:
    """The JSON object of a request. Raises ApiError 400, 413 or 415.

    Other content types are refused: browsers send those to any address without asking it first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, f"the body's Content-Type must be application/json, not {_short(kind)}."
        )
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _LARGEST:
            raise ApiError(413, f"the body has more than {_LARGEST} bytes.")
    try:
        return Body(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}.", code="invalid_json") from error


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
