"""What the server costs: python benchmarks/server.py FILE.gw [--streams 8] [--tokens 256]

The same prompts by engine.generate in this process, and through a `graphwright serve` of the same
file, streamed and whole, in turns. Prints tokens/s, medians, and the median of the ratios of
neighbouring turns. The client shares the CPUs with the server, so its work is part of the cost.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from graphwright import SamplingParams
from graphwright.runtime.engine import Engine

PROMPT_TOKENS = 16


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("artifact")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of both engines; default: the cores")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engine = Engine(options.artifact, max_sequences=options.streams, threads=options.threads)
    prompts = [
        [(7 * stream + 13 * i) % (engine.plan.vocab_size - 10) + 5 for i in range(PROMPT_TOKENS)]
        for stream in range(options.streams)
    ]

    def bodies(stream: bool) -> list[dict[str, Any]]:
        body: dict[str, Any] = {
            "max_tokens": options.tokens, "temperature": 0, "ignore_eos": True,
            "return_token_ids": engine.tokenizer is None,
        }  # fmt: skip
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return [{"prompt": ids, **body} for ids in prompts]

    with served(options.artifact, options.streams, engine.threads) as port:
        runs = {
            "engine.generate": lambda: generate(engine, prompts, options.tokens),
            "server, streamed": lambda: ask(port, bodies(True)),
            "server, whole": lambda: ask(port, bodies(False)),
        }
        found = alternate(runs, options.rounds)
    report = {
        "streams": options.streams, "tokens": options.tokens, "threads": engine.threads,
        **summary(found),
    }  # fmt: skip
    print(json.dumps(report) if options.json else table(report))


def alternate(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Tokens/s of each run in each round, after one round that is not counted."""
    found: dict[str, list[float]] = {title: [] for title in runs}
    for number in range(rounds + 1):
        for title, run in runs.items():
            rate = run()
            if number:
                found[title].append(rate)
    return found


def summary(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians, and of the ratios to the first."""
    first, *_ = found.values()
    return {
        title: {
            "tokens_per_second": round(statistics.median(rates), 1),
            "ratio": round(
                statistics.median(mine / other for mine, other in zip(rates, first, strict=True)), 3
            ),
        }
        for title, rates in found.items()
    }


def table(report: dict[str, object]) -> str:
    """Lines for people."""
    lines = [
        f"{report['streams']} streams of {report['tokens']} tokens, {report['threads']} threads"
    ]
    for title, figures in report.items():
        if isinstance(figures, dict):
            rate, ratio = figures["tokens_per_second"], figures["ratio"]
            lines.append(f"{title:18} {rate:10.1f} tokens/s  {ratio:.3f} of engine.generate")
    return "\n".join(lines)


def generate(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    """Tokens/s of one call, pieces included."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    start = time.perf_counter()
    outputs = engine.generate(prompts, params, on_piece=lambda *_: None)
    seconds = time.perf_counter() - start
    assert all(len(each.token_ids) == tokens for each in outputs)
    return tokens * len(prompts) / seconds


def ask(port: int, bodies: list[dict[str, Any]]) -> float:
    """Tokens/s of requests that are made at once, until the last answer has ended."""
    start = time.perf_counter()
    answers = exchange(port, [request(body) for body in bodies])
    seconds = time.perf_counter() - start
    wanted = sum(body["max_tokens"] for body in bodies)
    said = [int(n) for a in answers for n in re.findall(rb'"completion_tokens":(\d+)', a)]
    assert sum(said) == wanted, answers[0][-500:]
    return wanted / seconds


def request(body: dict[str, Any]) -> bytes:
    """A POST of /v1/completions after whose answer the connection closes."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def exchange(port: int, requests: list[bytes]) -> list[bytes]:
    """Sends every request on a connection of its own; what came back on each until its end."""
    answers: dict[int, list[bytes]] = {number: [] for number in range(len(requests))}
    with selectors.DefaultSelector() as selector:
        for number, content in enumerate(requests):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(content)
            selector.register(connection, selectors.EVENT_READ, number)
        while selector.get_map():
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                part = key.fileobj.recv(1 << 16)
                answers[key.data].append(part)
                if not part:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
    return [b"".join(parts) for parts in answers.values()]


@contextmanager
def served(artifact: str, streams: int, threads: int) -> Iterator[int]:
    """A server of its own on a free port, which is yielded, until the block is left."""
    command = [sys.executable, "-m", "graphwright", "serve", artifact, "--port", "0",
               "--max-sequences", str(streams), "--threads", str(threads)]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            address = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
            assert address is not None, said + process.stderr.read()
            yield int(address[1])
        finally:
            process.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
