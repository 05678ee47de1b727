"""Many requests and one engine: the queue, clients that leave, failures, and the end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from late_toy import LateToy
from served_toy import WAIT, GatedLibrary, Served, chat_toy, events, served_toy
from toy_model import ToyLibrary, toy_greedy

from graphwright import SamplingParams
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError
from graphwright.runtime.request import Request
from graphwright.runtime.server import engine_thread
from graphwright.runtime.server.engine_thread import EngineThread
from graphwright.runtime.server.errors import Unavailable
from graphwright.runtime.server.job import Job, Work
from graphwright.runtime.server.metrics import Metrics

GREEDY = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the server has cancelled a job."""
    found = threading.Event()
    cancel = EngineThread.cancel

    def noted(self: EngineThread, job: Job) -> None:
        cancel(self, job)
        found.set()

    monkeypatch.setattr(engine_thread.EngineThread, "cancel", noted)
    return found


def test_a_full_queue_is_503_and_those_in_it_are_served(tmp_path: Path) -> None:
    library = GatedLibrary()
    with (
        served_toy(tmp_path, library, max_sequences=2, queue=1) as toy,
        ThreadPoolExecutor(3) as clients,
    ):
        prompts = [[5], [6, 7], [8, 9, 10]]
        answers = [
            clients.submit(toy.complete, ids, max_tokens=4 + n, **GREEDY)
            for n, ids in enumerate(prompts)
        ]
        toy.wait_for(2, 1)
        for n in (1, 2):
            refused = toy.post("/v1/completions", prompt=[1], n=n)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("server_error", "queue_full")
            assert "2 sequences are running and 1 wait, of at most 3" in error["message"]
        library.gate.set()
        found = [answer.result(WAIT)["choices"][0]["token_ids"] for answer in answers]
        assert found == [toy_greedy(ids, 4 + n) for n, ids in enumerate(prompts)]
        toy.wait_for(0, 0)
        assert toy.complete([1], **GREEDY)["choices"][0]["token_ids"] == toy_greedy([1], 16)
        assert max(sequences for _, _, sequences, _ in library.steps) == 2


def leave(toy: Served, body: bytes, after: Callable[[socket.socket], Any]) -> None:
    """A client that sends a request and is gone after `after` of its connection."""
    with socket.create_connection(("127.0.0.1", toy.port), timeout=WAIT) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        after(connection)


@pytest.mark.parametrize("stream", [b"true", b"false"])
def test_a_client_that_leaves_frees_its_place(
    tmp_path: Path, stream: bytes, cancelled: threading.Event
) -> None:
    library = GatedLibrary()
    with served_toy(tmp_path, library, max_sequences=2) as toy, ThreadPoolExecutor(1) as clients:
        stays = clients.submit(toy.complete, [5], max_tokens=8, **GREEDY)
        toy.wait_for(1, 0)
        body = b'{"prompt":[[1],[2],[3]],"max_tokens":60,"ignore_eos":true,"stream":%b}' % stream
        leave(toy, body, lambda _: toy.wait_for(2, 2))
        assert cancelled.wait(WAIT)
        library.gate.set()
        toy.wait_for(0, 0)
        assert stays.result(WAIT)["choices"][0]["token_ids"] == toy_greedy([5], 8)
        assert toy.is_idle()
        # Those that left had at most the one step that was under way.
        assert toy.metric('graphwright_sequences_ended_total{reason="cancelled"}') == 3
        assert toy.metric("graphwright_generated_tokens_total") <= 8 + 3


def test_a_client_that_leaves_in_the_middle_of_a_stream(
    tmp_path: Path, cancelled: threading.Event
) -> None:
    class StopsAfterTwo(GatedLibrary):
        def run(self, *arguments: Any) -> Any:
            found = super().run(*arguments)
            if len(self.steps) == 2:
                self.gate.clear()
            return found

    library = StopsAfterTwo()
    library.gate.set()
    with served_toy(tmp_path, library) as toy:

        def first_words(connection: socket.socket) -> None:
            received = b""
            while received.count(b'"text"') < 2:
                received += connection.recv(1 << 16)

        leave(toy, b'{"prompt":[1],"max_tokens":60,"ignore_eos":true,"stream":true,'
                   b'"return_token_ids":true}', first_words)  # fmt: skip
        assert cancelled.wait(WAIT)
        library.gate.set()
        toy.wait_for(0, 0)
        assert toy.is_idle() and len(library.steps) <= 3


def test_a_request_that_fails_does_not_harm_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token 3 in its prompt makes a sequence's logits no numbers."""

    class Damaged(GatedLibrary):
        def run(self, entry: str, buffers: Any, *rest: Any) -> Any:
            found = super().run(entry, buffers, *rest)
            sequences, rows = int(buffers.batch[1]), int(buffers.batch[3])
            starts = buffers.query_start[: sequences + 1].tolist()
            for row, sampled in enumerate(buffers.sample_rows[:rows].tolist()):
                owner = next(n for n in range(sequences) if sampled < starts[n + 1])
                if 3 in buffers.tokens[starts[owner] : starts[owner + 1]]:
                    buffers.logits[row] = np.nan
            return found

    library = Damaged()
    with served_toy(tmp_path, library) as toy, ThreadPoolExecutor(4) as clients:
        before = clients.submit(toy.complete, [5], max_tokens=8, **GREEDY)
        toy.wait_for(1, 0)
        bad = clients.submit(toy.post, "/v1/completions", prompt=[[6], [4, 3]], **GREEDY)
        toy.wait_for(3, 0)
        after = clients.submit(toy.complete, [7], max_tokens=8, **GREEDY)
        toy.wait_for(4, 0)
        library.gate.set()
        error = bad.result(WAIT).json()["error"]
        assert bad.result(WAIT).status_code == 500
        assert (error["type"], error["code"]) == ("server_error", "engine_error")
        assert "logits are not numbers" in error["message"]
        for answer, ids in ((before, [5]), (after, [7])):
            assert answer.result(WAIT)["choices"][0]["token_ids"] == toy_greedy(ids, 8)
        assert toy.client.get("/health").json()["status"] == "ok"
        streamed = toy.client.post(
            "/v1/completions", json={"prompt": [3], "stream": True, **GREEDY}
        )
        (event,) = events(streamed.content)
        assert event["error"]["code"] == "engine_error"
        assert toy.is_idle()
        assert toy.metric('graphwright_sequences_ended_total{reason="failed"}') == 3


def test_an_engine_that_breaks_is_500_and_bad_health(tmp_path: Path) -> None:
    library = GatedLibrary()
    library.error = OSError("the lights went out")
    with served_toy(tmp_path, library, max_sequences=1) as toy, ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(toy.post, "/v1/completions", prompt=[5]) for _ in range(2)]
        toy.wait_for(1, 1)
        library.gate.set()
        sentence = "the engine stopped working: OSError: the lights went out."
        for answer in answers:
            assert answer.result(WAIT).status_code == 500
            assert answer.result(WAIT).json()["error"]["message"] == sentence
        health = toy.client.get("/health")
        assert health.status_code == 500
        assert health.json() == {"status": "failed", "error": sentence}
        assert toy.post("/v1/completions", prompt=[5]).status_code == 500
        assert toy.metric("graphwright_engine_failed") == 1
        assert toy.client.get("/v1/models").status_code == 200


def test_a_mistake_in_taking_a_request_ends_that_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Engine.submit

    def mistaken(self: Engine, prompt: Any, *given: Any, **options: Any) -> Request:
        if prompt == [13]:
            raise ZeroDivisionError("of something")
        return submit(self, prompt, *given, **options)

    monkeypatch.setattr(Engine, "submit", mistaken)
    with served_toy(tmp_path) as toy:
        answer = toy.post("/v1/completions", prompt=[[5], [13]])
        assert answer.status_code == 500
        sentence = "the engine failed on this request: ZeroDivisionError: of something."
        assert answer.json()["error"]["message"] == sentence
        assert toy.complete([5], **GREEDY)["choices"][0]["token_ids"] == toy_greedy([5], 16)
        assert toy.client.get("/health").status_code == 200 and toy.is_idle()


def test_a_server_that_ends_completes_what_runs(tmp_path: Path) -> None:
    library = GatedLibrary()
    with served_toy(tmp_path, library) as toy, ThreadPoolExecutor(1) as clients:
        answer = clients.submit(toy.complete, [5], max_tokens=5, **GREEDY)
        toy.wait_for(1, 0)
        toy.end()
        library.gate.set()
        assert answer.result(WAIT)["choices"][0]["token_ids"] == toy_greedy([5], 5)
    assert toy.is_idle()


def test_a_server_that_must_end_tells_those_who_wait(tmp_path: Path) -> None:
    """The engine's thread ends while a job runs, as after the time of grace."""
    library = GatedLibrary()

    async def run() -> None:
        engine = Engine(chat_toy(tmp_path / "toy.gw"), library=library)
        thread = EngineThread(lambda: engine, 0, Metrics())
        thread.start()
        job = thread.submit([Work([5], SamplingParams(max_tokens=5))], stream=True)
        await job.accepted()
        stopping = asyncio.create_task(thread.stop())
        await asyncio.sleep(0)  # stop() has begun
        with pytest.raises(Unavailable, match="shutting down"):
            thread.submit([Work([5], SamplingParams())], stream=True)
        library.gate.set()
        await stopping
        said = []
        with pytest.raises(Unavailable, match="shutting down"):
            async for pieces in job.pieces():
                said += pieces
        assert len(said) == 1  # of the step that was under way
        assert not thread._thread.is_alive() and engine._scheduler.running == 0

    asyncio.run(run())


def test_one_thread_makes_the_engine_and_runs_it(tmp_path: Path) -> None:
    """On a GPU nothing works in another thread."""
    threads = []

    class Noting(ToyLibrary):
        def run(self, *arguments: Any) -> Any:
            threads.append(threading.get_ident())
            return super().run(*arguments)

    def make() -> Engine:
        threads.append(threading.get_ident())
        return Engine(chat_toy(tmp_path / "toy.gw"), library=Noting())

    async def run() -> None:
        thread = EngineThread(make, 0, Metrics())
        thread.start()
        job = thread.submit([Work([5], SamplingParams(max_tokens=3))], stream=False)
        await job.accepted()
        assert [len(pieces) async for pieces in job.pieces()] == [3]
        await thread.stop()

    asyncio.run(run())
    assert len(threads) == 4 and len(set(threads)) == 1 and threads[0] != threading.get_ident()


def test_an_engine_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        EngineThread(lambda: Engine(tmp_path / "none.gw"), 0, Metrics())


def test_metrics_count(tmp_path: Path) -> None:
    with served_toy(tmp_path) as toy:
        toy.complete([5, 6], max_tokens=4, n=2, **GREEDY)
        toy.post("/v1/completions", prompt=[1000])
        toy.stream("/v1/completions", prompt=[5], max_tokens=3, **GREEDY)
        toy.wait_for(0, 0)
        text = toy.client.get("/metrics").text
        for name, value in {
            'requests_total{endpoint="/v1/completions",status="200"}': 2,
            'requests_total{endpoint="/v1/completions",status="400"}': 1,
            'sequences_ended_total{reason="length"}': 3,
            'sequences_ended_total{reason="refused"}': 1,
            "prompt_tokens_total": 5,
            "generated_tokens_total": 11,
            "reused_tokens_total": 0,
            "sequences_running": 0,
            "sequences_waiting": 0,
            "engine_failed": 0,
            "first_token_seconds_count": 2,
        }.items():
            assert f"\ngraphwright_{name} {value}\n" in text
        steps = len(toy.engine._library.steps)  # type: ignore[attr-defined]
        assert toy.metric("graphwright_step_seconds_count") == steps == 4 + 3
        assert toy.metric('graphwright_step_seconds_bucket{le="+Inf"}') == steps
        kinds = [line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len({name for name, _ in kinds}) == len(kinds) == 14
        assert toy.client.get("/version").json() == {"version": "0.1.0"}


def test_prompts_that_begin_alike_are_computed_once(tmp_path: Path) -> None:
    prompt = list(range(5, 5 + 11))  # two whole blocks of four, and three tokens
    with served_toy(tmp_path, prefix_cache=True) as toy:
        found = [toy.complete([*prompt, 7], max_tokens=3, **GREEDY) for _ in range(2)]
        first, again = (each["choices"][0]["text"] for each in found)
        assert first == again
        cached = [each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in found]
        assert cached == [0, 8]
        toy.wait_for(0, 0)
        assert toy.metric("graphwright_reused_tokens_total") == 8
        both = {"stream": True, "stream_options": {"include_usage": True}, "n": 2, **GREEDY}
        path = "/v1/completions"
        *_, last = toy.stream(path, prompt=[prompt, [*prompt, 7]], max_tokens=3, **both)
        assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}, "once a prompt"


def test_tokenize_and_back(tmp_path: Path) -> None:
    with served_toy(tmp_path, ToyLibrary()) as toy:
        found = toy.post("/tokenize", prompt="Hé!").json()
        assert found["tokens"][0] == 0 and found["count"] == 5 and found["max_model_len"] == 64
        bare = toy.post("/tokenize", prompt="Hé!", add_special_tokens=False).json()
        assert bare["tokens"] == found["tokens"][1:]
        assert toy.post("/detokenize", tokens=found["tokens"]).json() == {"prompt": "Hé!"}
        chat = toy.post("/tokenize", messages=[{"role": "user", "content": "H"}]).json()
        text = toy.post("/detokenize", tokens=chat["tokens"]).json()["prompt"]
        assert text == "[u]H[a]" and chat["tokens"].count(0) == 1
        for tokens in ([97], [-1], ["a"], "a", None):
            assert toy.post("/detokenize", tokens=tokens).status_code == 400
        assert toy.post("/tokenize", prompt="a", mood=1).json()["error"]["param"] == "mood"


def test_many_clients_of_steps_that_overlap(tmp_path: Path, cancelled: threading.Event) -> None:
    """Of different lengths, more than there are places, and one that leaves."""
    library = LateToy()
    with served_toy(tmp_path, library, max_sequences=3) as toy, ThreadPoolExecutor(8) as clients:
        prompts = [[5 + n] * (1 + 3 * n) for n in range(8)]
        answers = [
            clients.submit(toy.complete, ids, max_tokens=3 + 5 * n, **GREEDY)
            for n, ids in enumerate(prompts)
        ]
        body = b'{"prompt":[[1],[2]],"max_tokens":60,"ignore_eos":true,"stream":true}'
        leave(toy, body, lambda connection: connection.recv(1))
        found = [answer.result(WAIT)["choices"][0]["token_ids"] for answer in answers]
        assert found == [toy_greedy(ids, 3 + 5 * n) for n, ids in enumerate(prompts)]
        assert cancelled.wait(WAIT)
        toy.wait_for(0, 0)
        assert toy.is_idle()
        said = [what for what, _ in library.said]
        assert ("start", "start") in set(pairwise(said)), "steps did overlap"
