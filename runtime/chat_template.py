"""From a conversation to the text that a model was taught to read, by its own Jinja template.

Templates come with checkpoints and are not trusted: they run in Jinja's immutable sandbox. What
they find there (filters, functions, settings) is what transformers gives them; the text is equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.errors import ArtifactError, RequestError

__all__ = ["ChatTemplate", "read_chat_template"]

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
            "mask_token")  # fmt: skip
_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")


class ChatTemplate:
    """A compiled template. tokens: the texts that it knows as `bos_token`, `eos_token`, ….

    Imports jinja2. Raises ArtifactError for a source that is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        from jinja2 import TemplateError

        self._tokens = dict(tokens)
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ArtifactError(
                f"the model's chat template is not usable: {_end(error)}"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of `messages`, each with a role and a content, up to where the model's answer
        begins. It holds every special token it needs: tokenize it with `special=False`.

        tools: what the model may call, each {"type": "function", "function": {…}}. variables: what
        else the template asks for, such as enable_thinking.
        Raises RequestError with the template's own words when it refuses the conversation.
        """
        from jinja2 import TemplateError

        variables = dict(variables or {})
        for name in _GIVEN:
            if name in variables:
                raise RequestError(f"'{name}' of the chat template cannot be given as a variable.")
        try:
            text: str = self._template.render(
                messages=[_with_reasoning(each) for each in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._tokens, **variables},
            )
            return text
        except TemplateError as error:
            raise RequestError(
                f"the model's chat template refuses this conversation: {_end(error)}"
            ) from error
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise RequestError(
                f"the model's chat template fails on this conversation: {_end(error)}"
            ) from error


def read_chat_template(artifact: Artifact) -> ChatTemplate | None:
    """The template of an artifact; None when its model came without one. Raises ArtifactError."""
    config = artifact.settings("tokenizer_config.json")
    if "chat_template.jinja" in artifact:
        source: Any = artifact.read("chat_template.jinja").decode(errors="replace")
    else:
        source = _default(config.get("chat_template"))
    if not isinstance(source, str):
        return None
    tokens = {name: text for name in _SPECIAL if (text := _text(config.get(name))) is not None}
    return ChatTemplate(source, tokens)


def _default(found: Any) -> Any:
    """Older checkpoints have several templates, each with a name."""
    if isinstance(found, list):
        named = [each for each in found if isinstance(each, dict)]
        return next((e.get("template") for e in named if e.get("name") == "default"), None)
    return found


def _end(error: Exception) -> str:
    """Its words, with a full stop."""
    return f"{str(error).rstrip('.')}."


def _text(token: Any) -> str | None:
    """A token in tokenizer_config.json is a text, or an object with the text in `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message's reasoning has two names among templates; it gets both."""
    reasoning = message.get("reasoning_content")
    return dict(message) if reasoning is None else {"thinking": reasoning, **message}


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} marks the model's own words for training; here it only stands there."""

        tags = {"generation"}  # noqa: RUF012  the base class has it as a plain attribute

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class OpenNamespace(Namespace):
        """No names that Python gives a meaning to."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a chat template cannot set the attribute {name!r}.")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=lambda *pairs, **named: dict(*pairs, **named),
        namespace=OpenNamespace,
    )
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML, which models have not been taught."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
