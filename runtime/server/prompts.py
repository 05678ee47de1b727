"""What is to be completed, out of a request's body: texts, token ids, or a conversation."""

from __future__ import annotations

import json
from typing import Any

from graphwright.runtime.chat_template import ChatTemplate
from graphwright.runtime.errors import RequestError
from graphwright.runtime.server.body import Body
from graphwright.runtime.server.errors import ApiError
from graphwright.runtime.tokenizer import Tokenizer

__all__ = ["ChatPrompt", "is_ids", "take_messages", "take_prompts", "to_ids", "to_text"]

_NO_TOKENIZER = "the model has no tokenizer: give 'prompt' as token ids."


def take_prompts(body: Body) -> list[str | list[int]]:
    """`prompt`: a text, token ids, or a list of either. Raises ApiError 400."""
    prompt = body.take("prompt")
    if prompt is None:
        raise ApiError(400, "'prompt' is missing.", param="prompt", code="missing_parameter")
    if isinstance(prompt, str) or (prompt and is_ids(prompt)):
        return [prompt]
    several = prompt if isinstance(prompt, list) else []
    if several and (all(isinstance(each, str) for each in several) or all(map(is_ids, several))):
        return several
    raise ApiError(
        400,
        "'prompt' must be a text, a list of token ids, or a list of several of either.",
        param="prompt",
        code="invalid_type",
    )


def is_ids(value: Any) -> bool:
    """Is it a list of whole numbers?"""
    return isinstance(value, list) and all(type(each) is int for each in value)


def to_ids(prompt: str | list[int], tokenizer: Tokenizer | None) -> list[int]:
    """Token ids of a prompt. Raises ApiError 400."""
    if not isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        raise ApiError(400, _NO_TOKENIZER, param="prompt")
    try:
        return tokenizer.encode(prompt) if prompt else []
    except RequestError as error:
        raise ApiError(400, str(error), param="prompt") from error


def to_text(prompt: str | list[int], tokenizer: Tokenizer | None) -> str:
    """The text of a prompt; of ids without a tokenizer none."""
    if isinstance(prompt, str):
        return prompt
    return "" if tokenizer is None else tokenizer.decode(prompt)


class ChatPrompt:
    """`messages` of a body, with what else its template is to know."""

    def __init__(
        self,
        messages: list[dict[str, Any]],
        generation_prompt: bool,
        variables: dict[str, Any],
        tools: list[dict[str, Any]] | None,
    ) -> None:
        self.messages, self._variables, self._tools = messages, variables, tools
        self._generation_prompt = generation_prompt

    @property
    def has_calls(self) -> bool:
        """Are there earlier calls of tools in it?"""
        return any("tool_calls" in message for message in self.messages)

    def write_arguments(self) -> None:
        """Makes texts of the arguments of calls, for templates that want them so."""
        for message in self.messages:
            for call in message.get("tool_calls", []):
                function = call["function"]
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)

    def to_ids(self, template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
        """Token ids, with no special token but those of the template. Raises ApiError 400."""
        try:
            text = self._render(template, self._tools)
            if self._tools and text == self._render(template, None):
                raise ApiError(400, "the model's chat template has no place for tools: the model "
                               "would not know them.", param="tools",
                               code="unsupported_parameter")  # fmt: skip
            return tokenizer.encode(text, special=False)
        except RequestError as error:
            raise ApiError(400, str(error), param="messages") from error

    def _render(self, template: ChatTemplate, tools: list[dict[str, Any]] | None) -> str:
        return template.render(
            self.messages,
            add_generation_prompt=self._generation_prompt,
            tools=tools,
            variables=self._variables,
        )


def take_messages(body: Body, tools: list[dict[str, Any]] | None = None) -> ChatPrompt:
    """`messages`, `add_generation_prompt` and `chat_template_kwargs`. tools: what the template is
    to show. Raises ApiError 400.
    """
    found = body.take("messages", list)
    if not found:
        raise ApiError(400, "'messages' must have at least one message.",
                       param="messages", code="missing_parameter")  # fmt: skip
    messages = [_message(each, f"messages[{number}]") for number, each in enumerate(found)]
    generation_prompt = body.take("add_generation_prompt", bool, True)
    variables = body.take("chat_template_kwargs", dict, {})
    return ChatPrompt(messages, generation_prompt, variables, tools)


def _message(value: Any, where: str) -> dict[str, Any]:
    fields = Body(value, where)
    role = fields.take("role", str)
    if not role:
        raise ApiError(400, f"'{where}.role' is missing.", param=f"{where}.role")
    calls = fields.take("tool_calls", list, [])
    content = fields.take("content", default="" if calls else None)
    message = {"role": role, "content": _content(content, f"{where}.content")}
    if calls:
        message["tool_calls"] = [
            _tool_call(each, f"{where}.tool_calls[{number}]") for number, each in enumerate(calls)
        ]
    for name in ("name", "reasoning_content", "refusal", "tool_call_id"):
        text = fields.take(name, str)
        if text is not None:
            message[name] = text
    fields.close()
    return message


def _tool_call(value: Any, where: str) -> dict[str, Any]:
    """An earlier call; templates know its arguments as an object, the API as the text of one."""
    call = Body(value, where)
    found = {"id": call.take("id", str, ""), "type": call.take("type", str, "function")}
    function = Body(call.take("function", dict, {}), f"{where}.function")
    name, text = function.take("name", str, ""), function.take("arguments", str, "{}")
    call.close()
    function.close()
    try:
        arguments = json.loads(text)
    except ValueError as error:
        path = f"{where}.function.arguments"
        raise ApiError(400, f"'{path}' is not JSON: {error}.", param=path,
                       code="invalid_value") from error  # fmt: skip
    return {**found, "function": {"name": name, "arguments": arguments}}


def _content(value: Any, where: str) -> str:
    """A text, or parts of which each is one; parts are joined by line ends."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ApiError(400, f"'{where}' must be a text or a list of text parts.",
                       param=where, code="invalid_type")  # fmt: skip
    texts = []
    for number, each in enumerate(value):
        part = Body(each, f"{where}[{number}]")
        kind = part.take("type", str)
        if kind != "text":
            raise ApiError(400, f"'{where}[{number}]' is of the type {kind!r}; this server reads "
                           "parts of the type 'text' only.",
                           param=where, code="unsupported_parameter")  # fmt: skip
        texts.append(part.take("text", str, ""))
        part.close()
    return "\n".join(texts)
