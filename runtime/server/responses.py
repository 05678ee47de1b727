"""Answers as bytes: JSON, and server-sent events that end when the client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from graphwright.runtime.server.errors import ApiError

__all__ = ["EventStream", "Gone", "error_answer", "event", "json_answer", "unless_gone"]

T = TypeVar("T")
_DONE = b"data: [DONE]\n\n"
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class Gone(Exception):
    """The client has closed its connection."""


def to_json(value: Any) -> bytes:
    """UTF-8; a lone surrogate, which UTF-8 cannot hold, as its JSON escape."""
    return _ENCODER.encode(value).encode(errors="backslashreplace")


def json_answer(value: Any, status: int = 200) -> Response:
    """`value` as JSON."""
    return Response(to_json(value), status, media_type="application/json")


def error_answer(error: ApiError) -> Response:
    """An error as the OpenAI API says it."""
    answer = json_answer(error.body(), error.status)
    if error.status == 503:
        answer.headers["retry-after"] = "1"
    if error.status == 401:
        answer.headers["www-authenticate"] = "Bearer"
    return answer


def event(value: Any) -> bytes:
    """`value` as a server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


class EventStream(Response):
    """Sends `events` as they come. Ends, also when the client has gone, by calling `close`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""
        try:
            await _unless_gone(receive, self._send(send))
        except Gone:
            pass  # there is nobody to answer
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ApiError as error:
            chunk = event(error.body())
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. Raises Gone then.

    The request's body must have been read.
    """
    return await _unless_gone(request.receive, work)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
