"""The verb serve as a process: it says where it listens, answers, and ends by a signal."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from served_toy import WAIT, chat_toy
from toy_model import ToyLibrary, toy_greedy

from graphwright.__main__ import main

TESTS = Path(__file__).parent
PROGRAM = """
import sys
sys.path[:0] = [sys.argv.pop(1)]
import graphwright.runtime.engine as engine
from toy_model import ToyLibrary
import threading
class Slow(ToyLibrary):
    def run(self, *arguments):
        if 'hold' in sys.argv[1]:
            print('a step', flush=True)
            sys.stdin.readline()
        return super().run(*arguments)
engine.NativeLibrary = lambda *_, **__: Slow()
from graphwright.__main__ import main
code = main(sys.argv[2:])
assert not {'torch', 'transformers', 'tvm'} & set(sys.modules), 'heavy imports'
sys.exit(code)
"""


@contextmanager
def serving(
    path: Path, *options: str, hold: bool = False
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it says."""
    words = [sys.executable, "-c", PROGRAM, str(TESTS), "hold" if hold else "go",
             "serve", str(path), "--port", "0", *options]  # fmt: skip
    environment = {**os.environ, "GRAPHWRIGHT_API_KEY": "from-outside"}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            found = re.search(
                r"at (http://127\.0\.0\.1:\d+)/v1, up to (\d+) sequences of (\d+)", said
            )
            assert found is not None, said + process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_when_what_runs_has_ended(tmp_path: Path, number: signal.Signals) -> None:
    path = chat_toy(tmp_path / "toy.gw")
    with (
        serving(path, "--served-model-name", "T", "--context", "32", hold=True) as (process, url),
        httpx2.Client(base_url=url, timeout=WAIT) as client,
    ):
        assert process.stdout is not None and process.stdin is not None
        assert process.stderr is not None
        assert client.get("/v1/models").status_code == 401
        client.headers["authorization"] = "Bearer from-outside"
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["id"], model["max_model_len"]) == ("T", 32)
        body = {"prompt": [5], "max_tokens": 4, "temperature": 0, "ignore_eos": True,
                "return_token_ids": True, "stream": True}  # fmt: skip
        with client.stream("POST", "/v1/completions", json=body) as answer:
            assert process.stdout.readline() == "a step\n"
            process.send_signal(number)
            assert "running requests are completed" in process.stderr.readline()
            process.stdin.write("\n" * 8)
            process.stdin.flush()
            content = answer.read().decode()
        ids = [int(each) for each in re.findall(r'"token_ids":\[(\d+)\]', content)]
        assert ids == toy_greedy([5], 4) and content.endswith("data: [DONE]\n\n")
        assert process.wait(WAIT) == 0
        assert process.stderr.read() == ""


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    path = chat_toy(tmp_path / "toy.gw")
    with (
        serving(path, hold=True) as (process, url),
        httpx2.Client(base_url=url, timeout=WAIT) as client,
    ):
        assert process.stdout is not None and process.stderr is not None
        client.headers["authorization"] = "Bearer from-outside"
        with client.stream("POST", "/v1/completions", json={"prompt": [5], "stream": True}):
            assert process.stdout.readline() == "a step\n"
            process.terminate()
            assert "again to end now" in process.stderr.readline()
            process.terminate()
            assert process.wait(WAIT) == 0  # the step is still waiting for its line


def test_what_cannot_be_served(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphwright.runtime.engine.NativeLibrary", lambda *_, **__: ToyLibrary())
    path = str(chat_toy(tmp_path / "toy.gw"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", path, "--port", str(port)]) == 1
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use." in (
            capsys.readouterr().err
        )
    for arguments, code, words in (
        (["--port", "99999"], 2, "0<=x<=65535"),
        (["--host", "not a host", "--port", "0"], 1, "cannot listen on not a host"),
        (["--port", "0", "--max-sequences", "99"], 1, "from 1 to 10, not 99"),
        (["--port", "0", "--context", "65"], 1, "from 1 to 64 tokens, not 65"),
        (["--port", "0", "--api-key", ""], 2, "the API key is empty"),
        (["--port", "0", "--queue", "-1"], 2, "--queue"),
        (["--port", "0", "--snapshots", "3"], 1, "neither recurrent nor rolling states to keep"),
        (["--port", "0", "--snapshots", "-1"], 2, "--snapshots"),
    ):
        assert main(["serve", path, *arguments]) == code
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error
    assert main(["serve", str(tmp_path / "none.gw"), "--port", "0"]) == 1
    assert "No such file" in capsys.readouterr().err
