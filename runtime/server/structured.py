"""What an answer must look like, out of a request's body: `response_format`, or vLLM's keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from graphwright.runtime.errors import RequestError
from graphwright.runtime.grammar import Grammar
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.server.body import Body
from graphwright.runtime.server.errors import ApiError

__all__ = ["Structure", "take_structure", "with_grammar"]

Structure = tuple[str, Grammar]  # with the parameter that asked for it

_MAKERS: dict[str, Callable[[Any], Grammar]] = {
    "json": Grammar.json_schema,
    "regex": Grammar.regex,
    "choice": Grammar.choice,
    "grammar": Grammar.context_free,
}


def take_structure(body: Body, other: Structure | None = None) -> Structure | None:
    """The one grammar that a body asks for; other: what its tools ask for. Raises ApiError 400,
    also when there are several.
    """
    found: list[tuple[str, Grammar | None]] = [
        other or ("tools", None),
        ("response_format", _of_response_format(body.take("response_format", dict))),
    ]
    options = Body(body.take("structured_outputs", dict, {}), "structured_outputs")
    found += [(f"structured_outputs.{name}", _take(options, name)) for name in _MAKERS]
    if options.take("json_object", bool, False):
        found.append(("structured_outputs.json_object", Grammar.json_object()))
    options.close()
    found += [(f"guided_{name}", _take(body, name, "guided_")) for name in _MAKERS]
    asked = [(name, grammar) for name, grammar in found if grammar is not None]
    if len(asked) > 1:
        (first, _), (second, _), *_ = asked
        raise ApiError(400, f"'{first}' and '{second}' both say what the answer must be; give one "
                       "of them.", param=second, code="invalid_value")  # fmt: skip
    return asked[0] if asked else None


def with_grammar(params: SamplingParams, structure: Structure) -> SamplingParams:
    """How to choose the tokens of such an answer. Raises ApiError 400 where that cannot be."""
    try:
        return replace(params, grammar=structure[1])
    except RequestError as error:
        raise ApiError(400, str(error), param="min_tokens", code="invalid_value") from error


def _take(body: Body, name: str, prefix: str = "") -> Grammar | None:
    value = body.take(prefix + name)
    if value is None:
        return None
    return _made(_MAKERS[name], value, body.path(prefix + name))


def _of_response_format(value: dict[str, Any] | None) -> Grammar | None:
    if value is None:
        return None
    given = Body(value, "response_format")
    kind = given.take("type", str)
    if kind == "json_schema":
        described = Body(given.take("json_schema", dict, {}), "response_format.json_schema")
        described.take("name", str)
        described.take("description", str)
        described.take("strict", bool)  # answers keep to the schema either way
        schema = described.take("schema", dict)
        where = "response_format.json_schema.schema"
        if schema is None:
            raise ApiError(400, f"'{where}' is missing.", param=where, code="missing_parameter")
        described.close()
        given.close()
        return _made(Grammar.json_schema, schema, where)
    given.close()
    if kind not in ("text", "json_object"):
        where = "response_format.type"
        raise ApiError(400, f"'{where}' must be 'text', 'json_object' or 'json_schema', not "
                       f"{kind!r}.", param=where, code="invalid_value")  # fmt: skip
    return Grammar.json_object() if kind == "json_object" else None


def _made(make: Callable[[Any], Grammar], value: Any, where: str) -> Grammar:
    try:
        return make(value)
    except RequestError as error:
        raise ApiError(400, str(error), param=where, code="invalid_value") from error
