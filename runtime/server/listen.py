"""Serving an application on a socket until a signal ends it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.applications import Starlette
from uvicorn import Config, Server

from graphwright.runtime.errors import RequestError

__all__ = ["bind", "serve"]


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises RequestError when it cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot listen on {host} port {port}: {reason}.") from error
    return listener


def serve(
    app: Starlette,
    listener: socket.socket,
    *,
    grace: int,
    on_ready: Callable[[], None],
    on_signal: Callable[[], None],
) -> None:
    """Answers on `listener` until SIGINT or SIGTERM: requests that are running then have `grace`
    seconds to end, or until a second signal. on_ready is called when it answers, on_signal at the
    first signal.
    """
    config = Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=grace,
    )
    server = _Server(config, on_ready, on_signal)
    asyncio.run(server.serve([listener]))


class _Server(Server):
    """Ends by signals without passing them on: what was asked for is no failure."""

    def __init__(
        self, config: Config, on_ready: Callable[[], None], on_signal: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_ready, self._on_signal = on_ready, on_signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins, and says so."""
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles both signals while serving."""
        loop = asyncio.get_running_loop()
        both = (signal.SIGINT, signal.SIGTERM)
        for each in both:
            loop.add_signal_handler(each, self._leave)
        try:
            yield
        finally:
            for each in both:
                loop.remove_signal_handler(each)

    def _leave(self) -> None:
        if self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True
            self._on_signal()
