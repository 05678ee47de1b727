"""/v1/completions and /v1/chat/completions: from a body to work for the engine, and its answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from graphwright.runtime.errors import RequestError
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.server.answers import Answer
from graphwright.runtime.server.body import Body, read_body
from graphwright.runtime.server.echo import Echo
from graphwright.runtime.server.engine_thread import EngineThread
from graphwright.runtime.server.errors import ApiError
from graphwright.runtime.server.job import Job, Work
from graphwright.runtime.server.log_probabilities import take_chat_logprobs, take_text_logprobs
from graphwright.runtime.server.model import Model
from graphwright.runtime.server.prompts import take_messages, take_prompts, to_ids, to_text
from graphwright.runtime.server.responses import EventStream, event, json_answer, unless_gone
from graphwright.runtime.server.sampling import choice_params, take_sampling
from graphwright.runtime.server.shapes import ChatShape, Shape, TextShape
from graphwright.runtime.server.structured import Structure, take_structure, with_grammar
from graphwright.runtime.server.tools import Tools, take_tools

__all__ = ["Completions"]

_DEFAULT_TEXT_TOKENS = 16  # the API's own, where no chat is


@dataclass(frozen=True)
class _Ask:
    """What a body asks besides its prompts."""

    params: SamplingParams
    choices: int
    stream: bool
    usage: bool
    token_ids: bool
    structure: Structure | None
    echo: bool = False

    @property
    def every_token(self) -> bool:
        """Does each token get its chunk, also where no text is certain yet?"""
        return self.token_ids or self.params.logprobs is not None


class Completions:
    """The two endpoints that generate."""

    def __init__(self, model: Model, engine_thread: EngineThread) -> None:
        self._model, self._thread = model, engine_thread

    async def text(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await read_body(request)
        adapter = self._model.take_adapter(body)
        prompts = take_prompts(body)
        most = self._model.default_max_tokens(_DEFAULT_TEXT_TOKENS)
        echo = body.take("echo", bool, False)
        ask = self._ask(body, most, take_text_logprobs(body), echo=echo)
        await self._check(body, ask, len(prompts))
        tokenizer = self._model.tokenizer
        found = await run_in_threadpool(lambda: [to_ids(each, tokenizer) for each in prompts])
        texts = [to_text(each, tokenizer) for each in prompts] if echo else ()
        return await self._answer(request, TextShape(tokenizer), found, ask, adapter, texts)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await read_body(request)
        adapter = self._model.take_adapter(body)
        tools = take_tools(body, lambda: self._model.tool_format)
        shown = None if tools is None else tools.definitions
        encode = self._model.chat_encoder(take_messages(body, shown))
        most = self._model.default_max_tokens(self._model.context)
        ask = self._ask(body, most, take_chat_logprobs(body), tools)
        await self._check(body, ask, 1)
        tokenizer = self._model.tokenizer
        shape = ChatShape(tokenizer) if tools is None else tools.shape(tokenizer)
        ids = await run_in_threadpool(encode)
        return await self._answer(request, shape, [ids], ask, adapter)

    def _ask(
        self,
        body: Body,
        default_max_tokens: int | None,
        logprobs: int | None,
        tools: Tools | None = None,
        echo: bool = False,
    ) -> _Ask:
        choices = body.take("n", int, 1)
        if choices < 1:
            raise ApiError(400, f"'n' must be 1 or more, not {choices}.", param="n")
        stream = body.take("stream", bool, False)
        options = body.take("stream_options", dict)
        if options is not None and not stream:
            raise ApiError(400, "'stream_options' is for streamed answers: set 'stream'.",
                           param="stream_options")  # fmt: skip
        streaming = Body(options or {}, "stream_options")
        usage = streaming.take("include_usage", bool, False)
        streaming.take("include_obfuscation", bool, False)  # padding against eavesdroppers: none
        streaming.close()
        token_ids = body.take("return_token_ids", bool, False)
        if self._model.tokenizer is None and not token_ids:
            raise ApiError(400, "the model has no tokenizer and makes no text: set "
                           "'return_token_ids'.", param="return_token_ids")  # fmt: skip
        params = take_sampling(body, default_max_tokens, logprobs, scores_prompt=echo)
        self._model.check_ids(params)
        structure = take_structure(body, None if tools is None else tools.structure())
        if structure is not None:
            params = with_grammar(params, structure)
        return _Ask(params, choices, stream, usage, token_ids, structure, echo)

    async def _check(self, body: Body, ask: _Ask, prompts: int) -> None:
        """What can be said before the engine sees it, of a body that has been read."""
        body.close()
        sequences = prompts * ask.choices
        if sequences > self._thread.capacity:
            raise ApiError(
                400,
                f"the request asks for {sequences} sequences; this server holds at most "
                f"{self._thread.capacity}, running and waiting ones together.",
                param="n",
            )
        if ask.structure is not None:
            await run_in_threadpool(self._model.check_grammar, ask.structure)

    async def _answer(
        self, request: Request, shape: Shape, prompts: list[list[int]], ask: _Ask,
        adapter: str | None, texts: Sequence[str] = (),
    ) -> Response:  # fmt: skip
        work = [
            Work(ids, choice_params(ask.params, choice), adapter)
            for ids in prompts
            for choice in range(ask.choices)
        ]
        echoes: list[Echo | None] = [None] * len(work)
        for number, text in enumerate(texts):
            told = [Echo(text, ask.params.logprobs is not None)] * ask.choices
            echoes[number * ask.choices : (number + 1) * ask.choices] = told
        name = adapter or self._model.name
        answer = Answer(shape, name, sum(map(len, prompts)), echoes)
        job = self._thread.submit(work, ask.stream)

        def close() -> None:
            self._thread.cancel(job)

        streams = False
        try:
            await unless_gone(request, self._accepted(job, shape.source))
            if ask.stream:
                streams = True
                return EventStream(_events(job, answer, ask, shape.opens), close)
            await unless_gone(request, _listen(job, answer))
            answer.cached_tokens = _cached(job, ask)
            return json_answer(answer.whole(ask.token_ids))
        finally:
            if not streams:
                close()

    async def _accepted(self, job: Job, source: str) -> None:
        try:
            await job.accepted()
        except RequestError as error:
            long = any(len(each.prompt) >= self._model.context for each in job.work)
            code = "context_length_exceeded" if long else "invalid_value"
            raise ApiError(400, str(error), param=source, code=code) from error


async def _listen(job: Job, answer: Answer) -> None:
    async for pieces in job.pieces():
        for number, piece in pieces:
            answer.add(number, piece)


def _cached(job: Job, ask: _Ask) -> int:
    """Of each prompt once, by its first choice: the others find what that one has computed."""
    return sum(job.reused[:: ask.choices])


async def _events(job: Job, answer: Answer, ask: _Ask, opens: bool) -> AsyncIterator[bytes]:
    """The chunks; those that are there at a time in one write."""
    encode: Callable[[dict[str, object]], bytes] = event
    if ask.usage:

        def encode(chunk: dict[str, object]) -> bytes:
            return event({**chunk, "usage": None})

    if opens:
        yield b"".join(encode(answer.opening(index)) for index in range(len(answer.said)))
    async for pieces in job.pieces():
        chunks = []
        for number, piece in pieces:
            told = answer.add(number, piece)
            chunk = answer.chunk(number, told, ask.token_ids, ask.every_token)
            if chunk is not None:
                chunks.append(encode(chunk))
        if chunks:
            yield b"".join(chunks)
    if ask.usage:
        answer.cached_tokens = _cached(job, ask)
        yield event(answer.closing())
