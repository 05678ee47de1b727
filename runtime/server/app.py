"""The application: which address is answered by what, who may ask, and how errors look."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graphwright.runtime.engine import Engine
from graphwright.runtime.server.completions import Completions
from graphwright.runtime.server.engine_thread import EngineThread
from graphwright.runtime.server.errors import ApiError
from graphwright.runtime.server.metrics import Metrics
from graphwright.runtime.server.model import Model
from graphwright.runtime.server.responses import Gone, error_answer, json_answer
from graphwright.runtime.server.tokens import Tokens

__all__ = ["make_app"]


def make_app(
    make_engine: Callable[[], Engine],
    *,
    name: str,
    queue: int = 64,
    api_key: str | None = None,
) -> tuple[Starlette, Engine]:
    """An ASGI application over the engine that `make_engine` makes in the application's own thread,
    and that engine, to read from. Raises what make_engine raises.

    name: what the model is called. queue: sequences that may wait beside those that run. api_key:
    what every request but /health must bring as its bearer token.
    """
    metrics = Metrics()
    thread = EngineThread(make_engine, queue, metrics)
    model = Model(thread.engine, name)
    completions, tokens, status = Completions(model, thread), Tokens(model), _Status(model, thread)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        thread.start()
        yield  # cancelled here when nothing is to be waited for: the thread is a daemon
        await thread.stop()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", completions.chat, methods=["POST"]),
            Route("/v1/completions", completions.text, methods=["POST"]),
            Route("/v1/models", status.models),
            Route("/v1/models/{name:path}", status.model),
            Route("/tokenize", tokens.tokenize, methods=["POST"]),
            Route("/detokenize", tokens.detokenize, methods=["POST"]),
            Route("/health", status.health),
            Route("/metrics", status.metrics),
            Route("/version", status.version),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            Gone: _nobody,
            Exception: _our_mistake,
        },
        lifespan=lifespan,
    )
    endpoints = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.add_middleware(_Gate, metrics=metrics, endpoints=endpoints, api_key=api_key)
    return app, thread.engine


class _Status:
    """What can be asked about the server."""

    def __init__(self, model: Model, thread: EngineThread) -> None:
        self._model, self._thread = model, thread

    async def health(self, _: Request) -> Response:
        """200 while the engine works, else 500 with why it does not."""
        failure = self._thread.failure
        if failure is not None:
            return json_answer({"status": "failed", "error": failure}, 500)
        found = {"running": self._thread.running, "waiting": self._thread.waiting}
        return json_answer({"status": "ok", **found})

    async def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        thread = self._thread
        text = thread.metrics.text(
            running=thread.running, waiting=thread.waiting, failed=thread.failure is not None
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def version(self, _: Request) -> Response:
        """Of graphwright."""
        from graphwright import __version__

        return json_answer({"version": __version__})

    async def models(self, _: Request) -> Response:
        """The model and its adapters."""
        return json_answer({"object": "list", "data": self._model.descriptions()})

    async def model(self, request: Request) -> Response:
        """One of those, by its name."""
        adapter = self._model.adapter_named(request.path_params["name"])
        return json_answer(self._model.description(adapter))


class _Gate:
    """Lets in who has the key, and counts answers."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, endpoints: frozenset[str], api_key: str | None
    ) -> None:
        self._app, self._metrics, self._endpoints = app, metrics, endpoints
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        endpoint = path if path in self._endpoints else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(endpoint, message["status"])
            await send(message)

        if path == "/health" or self._may_enter(scope):
            await self._app(scope, receive, counted)
        else:
            refusal = ApiError(401, "the API key is missing or wrong: send the header "
                               "'Authorization: Bearer KEY'.", code="invalid_api_key")  # fmt: skip
            await error_answer(refusal)(scope, receive, counted)

    def _may_enter(self, scope: Scope) -> bool:
        if self._expected is None:
            return True
        given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)


async def _api_error(_: Request, error: Any) -> Response:
    return error_answer(error)


async def _http_error(request: Request, error: Any) -> Response:
    if error.status_code == 404:
        message = f"there is nothing at {request.url.path!r}."
    elif error.status_code == 405:
        message = f"{request.url.path!r} does not take {request.method}."
    else:
        message = f"{error.detail}."
    answer = error_answer(ApiError(error.status_code, message))
    answer.headers.update(error.headers or {})
    return answer


async def _nobody(_: Request, __: Any) -> Response:
    return Response(status_code=499)  # the connection is closed; the number is for /metrics


async def _our_mistake(_: Request, error: Exception) -> Response:
    message = f"the server made a mistake: {type(error).__name__}: {error}."
    return error_answer(ApiError(500, message, code="internal_error"))
