"""/tokenize and /detokenize: text to ids and back, as completions do it."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from graphwright.runtime.errors import RequestError
from graphwright.runtime.server.body import Body, read_body
from graphwright.runtime.server.errors import ApiError
from graphwright.runtime.server.model import Model
from graphwright.runtime.server.prompts import is_ids, take_messages
from graphwright.runtime.server.responses import json_answer

__all__ = ["Tokens"]


class Tokens:
    """The two endpoints; they do not ask the engine."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: {prompt, add_special_tokens} or {messages, …} to {tokens, …}."""
        body = await read_body(request)
        self._model.take_adapter(body)
        ids = await run_in_threadpool(self._ids, body)
        found = {"tokens": ids, "count": len(ids), "max_model_len": self._model.context}
        return json_answer(found)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: {tokens} to {prompt}, without special tokens."""
        body = await read_body(request)
        self._model.take_adapter(body)
        ids = body.take("tokens")
        body.close()
        most = self._model.vocab_size
        if not is_ids(ids) or not all(0 <= each < most for each in ids):
            raise ApiError(400, f"'tokens' must be a list of token ids from 0 to {most - 1}.",
                           param="tokens", code="invalid_value")  # fmt: skip
        text = await run_in_threadpool(self._model.need_tokenizer().decode, ids)
        return json_answer({"prompt": text})

    def _ids(self, body: Body) -> list[int]:
        text = body.take("prompt", str)
        if text is None:
            encode = self._model.chat_encoder(take_messages(body))
            body.close()
            return encode()
        special = body.take("add_special_tokens", bool, True)
        body.close()
        try:
            return self._model.need_tokenizer().encode(text, special=special)
        except RequestError as error:
            raise ApiError(400, str(error), param="prompt") from error
