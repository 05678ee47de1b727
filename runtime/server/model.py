"""The one model that is served, and its adapters: names, tokenizer and template."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from graphwright.runtime.chat_template import ChatTemplate, read_chat_template
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError, RequestError
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.server.body import Body
from graphwright.runtime.server.errors import ApiError
from graphwright.runtime.server.prompts import ChatPrompt
from graphwright.runtime.server.structured import Structure
from graphwright.runtime.tokenizer import Tokenizer
from graphwright.runtime.tool_format import ToolFormat, find_tool_format

__all__ = ["Model"]


class Model:
    """What answers need to know of the engine's artifact; nothing here changes.

    Raises RequestError for a name that one of its adapters has, too.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self.name = name
        self._adapters = engine.plan.adapters
        if name in self._adapters:
            raise RequestError(
                f"'{name}' is also the name of an adapter of {engine.artifact.path}: requests "
                "could not say which they mean. Give the model another one: --served-model-name."
            )
        self.context = engine.context
        self.vocab_size = engine.plan.vocab_size
        self.tokenizer = engine.tokenizer
        self._grammars = engine.grammars
        self._created = int(time.time())
        self._own_max_tokens = engine.generation_config.get("max_new_tokens")
        self._template: ChatTemplate | None = None
        self._why_no_chat = (
            f"the model '{name}' came without a chat template; use /v1/completions instead."
        )
        try:
            self._template = read_chat_template(engine.artifact)
        except ArtifactError as error:
            self._why_no_chat = f"{error} Use /v1/completions instead."

    def take_adapter(self, body: Body) -> str | None:
        """Takes `model`, which may be left out: the adapter of that name; None for the model
        itself. Raises ApiError 404 for another name.
        """
        asked = body.take("model", str)
        return None if asked is None else self.adapter_named(asked)

    def adapter_named(self, asked: str) -> str | None:
        """The adapter of that name, None for the model's own. Raises ApiError 404 for a name that
        is not served."""
        if asked == self.name:
            return None
        if asked in self._adapters:
            return asked
        names = ", ".join(f"'{each}'" for each in (self.name, *self._adapters))
        raise ApiError(404, f"the model {asked!r} is not served here; "
                       f"{names} {'are' if self._adapters else 'is'}.",
                       param="model", code="model_not_found")  # fmt: skip

    def default_max_tokens(self, otherwise: int) -> int | None:
        """When a body says nothing: None, which asks the model's generation_config, or a number."""
        return otherwise if self._own_max_tokens is None else None

    def chat_encoder(self, prompt: ChatPrompt) -> Callable[[], list[int]]:
        """What makes token ids of it. Raises ApiError 400 when the model has no template."""
        template, tokenizer = self._template, self.need_tokenizer()
        if template is None:
            raise ApiError(400, self._why_no_chat, code="no_chat_template")

        def encode() -> list[int]:
            form = self.tool_format if prompt.has_calls else None
            if form is not None and form.as_text:
                prompt.write_arguments()
            return prompt.to_ids(template, tokenizer)

        return encode

    def check_ids(self, params: SamplingParams) -> None:
        """Raises ApiError 400 for a bias or a stop of a token that does not exist."""
        biases = [each for each, _ in params.biases]
        for name, ids in (("logit_bias", biases), ("stop_token_ids", params.stop_token_ids)):
            wrong = [each for each in ids if each >= self.vocab_size]
            if wrong:
                raise ApiError(400, f"'{name}' has the token id {wrong[0]}; this model's ids are "
                               f"0 to {self.vocab_size - 1}.",
                               param=name, code="invalid_value")  # fmt: skip

    def check_grammar(self, structure: Structure) -> None:
        """Raises ApiError 400 for what answers cannot keep to. For any thread; it takes a while."""
        where, grammar = structure
        try:
            self._grammars.check(grammar)
        except RequestError as error:
            raise ApiError(400, str(error), param=where, code="invalid_value") from error

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes calls of tools, as far as its template tells."""
        template, tokenizer = self._template, self.tokenizer
        if template is None or tokenizer is None:
            return None
        return find_tool_format(
            template, lambda text: tokenizer.decode(tokenizer.encode(text, special=False))
        )

    def need_tokenizer(self) -> Tokenizer:
        """Raises ApiError 400 when the artifact has none."""
        if self.tokenizer is None:
            raise ApiError(400, f"the model '{self.name}' has no tokenizer.", code="no_tokenizer")
        return self.tokenizer

    def description(self, adapter: str | None = None) -> dict[str, Any]:
        """As /v1/models lists it, or one of its adapters, whose `parent` it is."""
        return {
            "id": adapter or self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "graphwright",
            **({"parent": self.name} if adapter else {}),
            "max_model_len": self.context,
        }

    def descriptions(self) -> list[dict[str, Any]]:
        """The model and its adapters."""
        return [self.description(each) for each in (None, *self._adapters)]
