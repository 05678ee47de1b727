"""The toy model behind a real server on a free loopback port, and what tests need around it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import uvicorn
from numpy.typing import NDArray
from toy_model import ToyLibrary, word_tokenizer, write_toy

from graphwright.runtime.draws import Draw
from graphwright.runtime.engine import Engine
from graphwright.runtime.library import StepBuffers
from graphwright.runtime.server.app import make_app
from graphwright.runtime.server.listen import bind

__all__ = ["CHAT_TEMPLATE", "GatedLibrary", "Served", "chat_toy", "events", "served", "served_toy"]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('there is no role ' + message.role) }}{% endif %}"
    "[{{ message.role[0] }}]{{ message.content }}{% if shout is defined %}!{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
WAIT = 60  # seconds after which something that must come is held for lost


class GatedLibrary(ToyLibrary):
    """Steps wait until the gate is open. error: what steps raise instead."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.error: Exception | None = None

    def run(
        self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
    ) -> NDArray[np.int32] | None:
        self.entered.set()
        assert self.gate.wait(WAIT)
        if self.error is not None:
            raise self.error
        return super().run(entry, buffers, draws, logits)


@dataclass
class Served:
    """A running server: a client of it, and the engine behind it."""

    client: httpx2.Client
    engine: Engine
    port: int
    server: uvicorn.Server

    def end(self) -> None:
        """Tells the server to end, and waits until it takes no more connections."""
        self.server.should_exit = True
        limit = time.monotonic() + WAIT
        with suppress(ConnectionRefusedError, ConnectionResetError):
            while time.monotonic() < limit:
                socket.create_connection(("127.0.0.1", self.port)).close()
            raise AssertionError("the server still takes connections")

    def post(self, path: str, **body: Any) -> httpx2.Response:
        """The answer to a JSON body."""
        return self.client.post(path, json=body)

    def complete(self, prompt: Any, **body: Any) -> dict[str, Any]:
        """A whole answer of /v1/completions, which must be right."""
        answer = self.post("/v1/completions", prompt=prompt, **body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a streamed answer, which must end as it should."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            return events(answer.read())

    def metric(self, name: str) -> float:
        """A line of /metrics."""
        lines = self.client.get("/metrics").text.splitlines()
        (value,) = (line.split(" ")[-1] for line in lines if line.startswith(f"{name} "))
        return float(value)

    def live(self) -> tuple[int, int]:
        """Sequences that run and that wait."""
        found = self.client.get("/health").json()
        return found["running"], found["waiting"]

    def wait_for(self, running: int, waiting: int) -> None:
        """Until so many run and wait."""
        limit = time.monotonic() + WAIT
        while (found := self.live()) != (running, waiting):
            assert time.monotonic() < limit, f"still {found}, not {running, waiting}"

    def is_idle(self) -> bool:
        """Does the engine hold nothing any more?"""
        pool = self.engine._pool
        return (
            self.engine._scheduler.running == 0
            and not self.engine._stepper.requests
            and pool.free == pool.blocks
        )


def events(content: bytes) -> list[dict[str, Any]]:
    """The JSON of server-sent events; the last says that it is the last."""
    *parts, done, nothing = content.decode().split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def chat_toy(path: Path, **options: Any) -> Path:
    """The toy with a tokenizer and a chat template."""
    tokenizer = word_tokenizer()
    return write_toy(path, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE, **options)


@contextmanager
def served(engine: Engine, **options: Any) -> Iterator[Served]:
    """Serves `engine` as 'toy' while the block runs."""
    app, _ = make_app(lambda: engine, name="toy", **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    with bind("127.0.0.1", 0) as listener, ThreadPoolExecutor(1) as thread:
        listener.listen()
        port = listener.getsockname()[1]
        running = thread.submit(lambda: asyncio.run(server.serve([listener])))
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT) as client:
                yield Served(client, engine, port, server)
        finally:
            server.should_exit = True
            running.result(WAIT)


@contextmanager
def served_toy(
    folder: Path, library: ToyLibrary | None = None, max_sequences: int = 4, *,
    prefix_cache: bool = False, **options: Any,
) -> Iterator[Served]:  # fmt: skip
    """Serves the toy with its chat template."""
    path = chat_toy(folder / "toy.gw")
    engine = Engine(
        path, library=library or ToyLibrary(), max_sequences=max_sequences,
        prefix_cache=prefix_cache,
    )  # fmt: skip
    with served(engine, **options) as found:
        yield found
