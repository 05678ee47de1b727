"""A runtime as a process that keeps its model loaded and answers one command at a time."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from lineup import Contestant

__all__ = ["Worker", "WorkerEnded", "first_token_seconds", "forget"]

WORKERS = Path(__file__).resolve().parent / "workers"
SETTLE = 0.05  # seconds that a runtime's idle threads get to stop spinning


class WorkerEnded(RuntimeError):
    """The process of a runtime ended on its own."""


def forget(model: Path) -> None:
    """Lets the system drop a model's files from its cache, so that they are read from the disk.

    Whoever wrote them, or the system's memory just then, may have left them there in small pages,
    which are read up to a third slower than those that reading makes.
    """
    for path in [model, *model.rglob("*")]:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Worker:
    """One started contestant. Raises WorkerEnded when the process ends on its own."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.peak_rss_mb = 0
        forget(Path(contestant.command[2]))
        self._process = subprocess.Popen(
            contestant.command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            cwd=WORKERS,
        )  # fmt: skip
        self.hello = self._answer()

    def ask(self, **command: Any) -> float:
        """One measurement: tokens per second."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.peak_rss_mb = answer["peak_rss_mb"]
        time.sleep(SETTLE)
        return float(answer["tps"])

    def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            command = " ".join(self.contestant.command)
            raise WorkerEnded(f"the worker of '{self.contestant.title}' ended: {command}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def first_token_seconds(contestant: Contestant, prompt: int) -> tuple[float, float]:
    """(seconds from the start of a new process to the first token of a prompt, of which the process
    spent before it began to load the model: the interpreter and its imports)."""
    from workers.protocol import FIRST_TOKEN

    start = time.perf_counter()
    process = subprocess.Popen(
        contestant.command, text=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
        cwd=WORKERS, env={**os.environ, FIRST_TOKEN: str(prompt)},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.perf_counter() - start
    process.wait()
    process.stdout.close()
    if not line:
        raise SystemExit(f"'{contestant.title}' ended before its first token.")
    time.sleep(SETTLE)
    return seconds, seconds - float(json.loads(line)["total_s"])
