"""A conversation with a model: what was said so far, and the next answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from graphwright.runtime.chat_template import ChatTemplate
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.request import FinishReason
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["Conversation"]


class Conversation:
    """Turns of a user and of the model, each answer made by `engine` from all that came before.

    system: what the model is told first. params: max_tokens left out means what the model's
    generation_config says, else what the context holds. finish_reason: of the last answer; None
    when it was interrupted. Raises RequestError when the engine's artifact has no tokenizer.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        params: SamplingParams,
        system: str | None = None,
    ) -> None:
        if engine.tokenizer is None:
            raise RequestError("the artifact has no tokenizer: it cannot hold a conversation.")
        if params.max_tokens is None and engine.generation_config.get("max_new_tokens") is None:
            params = replace(params, max_tokens=engine.context)
        self.finish_reason: FinishReason | None = None
        self._engine, self._tokenizer = engine, engine.tokenizer
        self._template, self._params = template, params
        self._begin = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._begin)

    @property
    def messages(self) -> list[dict[str, str]]:
        """Role and content of every turn."""
        return list(self._messages)

    def reset(self) -> None:
        """Forgets all turns."""
        self._messages = list(self._begin)

    def say(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """The answer to `text`, piece by piece, until it ends or `stopped` says so before a step.

        What was said stays, also of a stopped answer; a turn without any answer does not.
        Raises RequestError, for one when the context cannot hold the conversation.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        ids = self._tokenizer.encode(self._template.render(messages), special=False)
        request = self._engine.submit(ids, self._params)
        said: list[str] = []
        try:
            while not request.finished and not stopped():
                self._engine.step()
                for piece in request.take_pieces():
                    said.append(piece.text)
                    yield piece.text
        finally:
            self._engine.cancel(request)
            self.finish_reason = request.finish_reason
            if said:
                answer = {"role": "assistant", "content": "".join(said)}
                self._messages = [*messages, answer]
