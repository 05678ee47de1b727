"""What a generated text must be: JSON of some schema, one of some texts, a regular expression, …"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graphwright.runtime.errors import RequestError

__all__ = ["JSON_WHITE_SPACE", "Grammar"]

# Between the parts of JSON: a space, or a line's end and the next one's indentation. Without a
# bound a model that likes spaces would write nothing else.
JSON_WHITE_SPACE = r" |\r?\n( {0,20}|\t{0,8})"


@dataclass(frozen=True)
class Grammar:
    """A language that an answer must be a word of; made by one of the methods below.

    Tokens that would leave it cannot be chosen, the end-of-text token only where the text is
    complete; a text that cannot go on ends the answer. An answer that is cut, by max_tokens, the
    context or a stop text, may be only the beginning of a word. What a method is given is checked
    when an engine takes the request: RequestError then says what is wrong with it.
    """

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON that a JSON schema (2020-12), an object or its text, describes; properties in the
        order of the schema. Keywords that cannot be kept to are errors. Raises RequestError.
        """
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            parsed = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the JSON schema is not JSON: {error}.") from error
        if not isinstance(parsed, dict):
            raise RequestError(f"a JSON schema must be an object, not {_short(text)}.")
        return cls("json_schema", text)

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """What a regular expression matches as a whole, without look-around or references back."""
        return cls("regex", _text(pattern, "a regular expression"))

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts. Raises RequestError when there are none, or one is empty."""
        good = isinstance(texts, Sequence) and not isinstance(texts, str) and len(texts) > 0
        if not good or not all(isinstance(each, str) and each for each in texts):
            raise RequestError(
                f"a choice must be a list of texts that are not empty, not {_short(repr(texts))}."
            )
        return cls("choice", json.dumps(list(texts)))

    @classmethod
    def context_free(cls, text: str) -> Grammar:
        """What a grammar derives: Lark's notation with the rule `start`, or GBNF with `root`."""
        return cls("grammar", _text(text, "a grammar"))


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{what} must be a text, not {_short(repr(value))}.")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
