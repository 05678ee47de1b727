"""The one thread that owns the engine: jobs come in, steps run over all of them, pieces go out.

Everything public here is called on the event loop; what the thread has done reaches it as one
report after each step. An engine is not for several threads, so none but this one touches it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.request import Request
from graphwright.runtime.server.errors import EngineError, Unavailable
from graphwright.runtime.server.job import ACCEPTED, Event, Job, Work
from graphwright.runtime.server.metrics import Metrics

__all__ = ["EngineThread"]


@dataclass
class _Report:
    """What happened since the last one. ended: sequences that left the engine, by reason."""

    events: list[tuple[Job, Event]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    step_seconds: float | None = None
    failure: str | None = None


class EngineThread:
    """Runs `engine` for up to engine.max_sequences sequences at a time, with `queue` more waiting.

    failure: the sentence that says why the engine stopped working; None while it works.
    """

    def __init__(self, engine: Engine, queue: int, metrics: Metrics) -> None:
        self.capacity = engine.max_sequences + queue
        self.failure: str | None = None
        self.metrics = metrics
        self._engine = engine
        self._live = 0
        self._closing = False
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        # These are the thread's own.
        self._jobs: dict[Job, list[Request | None]] = {}
        self._report = _Report()
        self._stopped = False

    @property
    def running(self) -> int:
        """Sequences in the engine's batch."""
        return min(self._live, self._engine.max_sequences)

    @property
    def waiting(self) -> int:
        """Sequences that have been taken and wait for a place in the batch."""
        return self._live - self.running

    def start(self) -> None:
        """Begins; on the event loop that reports will come to."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends every job, and the thread."""
        self._closing = True
        self._inbox.put(self._finish)
        await asyncio.to_thread(self._thread.join)

    def submit(self, work: Sequence[Work]) -> Job:
        """Queues a job. Raises Unavailable when there is no room, EngineError when it is broken."""
        if self._closing:
            raise Unavailable("the server is shutting down.", "shutting_down")
        if self.failure is not None:
            raise EngineError(self.failure)
        if self._live + len(work) > self.capacity:
            raise Unavailable(
                f"the queue is full: {self.running} sequences are running and {self.waiting} "
                f"wait, of at most {self.capacity} together; try again later.",
                "queue_full",
            )
        job = Job(work)
        self._live += len(work)
        self._inbox.put(partial(self._admit, job))
        return job

    def cancel(self, job: Job) -> None:
        """Frees what a job still holds; nothing happens when it has ended."""
        self._inbox.put(partial(self._end, job, "cancelled"))

    def _deliver(self, report: _Report) -> None:
        now = time.perf_counter()
        self._live -= len(report.ended)
        self.failure = report.failure or self.failure
        for reason in report.ended:
            self.metrics.ended(reason)
        if report.step_seconds is not None:
            self.metrics.step_seconds.observe(report.step_seconds)
        for job, event in report.events:
            if isinstance(event, tuple):
                self.metrics.generated_tokens += len(event[1].token_ids)
                if not job.spoke:
                    job.spoke = True
                    self.metrics.first_token_seconds.observe(now - job.submitted)
            elif event is ACCEPTED:
                self.metrics.prompt_tokens += sum(len(each.prompt) for each in job.work)
            job.put(event)

    # From here on: the thread.

    def _run(self) -> None:
        while not self._stopped:
            self._take_commands()
            if self._jobs:
                self._step()
            self._send()

    def _take_commands(self) -> None:
        """Runs the commands that came; waits for one when there is nothing to compute."""
        with suppress(Empty):
            command = self._inbox.get(block=not self._jobs)
            while True:
                command()
                command = self._inbox.get_nowait()

    def _send(self) -> None:
        report, self._report = self._report, _Report()
        if report != _Report():
            assert self._loop is not None
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._deliver, report)

    def _admit(self, job: Job) -> None:
        requests: list[Request | None] = []
        try:
            for each in job.work:
                requests.append(self._engine.submit(each.prompt, each.params))
        except Exception as error:  # noqa: BLE001  the thread must live on
            for request in requests:
                assert request is not None
                self._engine.cancel(request)
            self._report.ended += ["refused"] * len(job.work)
            known = isinstance(error, RequestError)
            self._report.events.append((job, error if known else EngineError(_sentence(error))))
            return
        self._jobs[job] = requests
        self._report.events.append((job, ACCEPTED))

    def _step(self) -> None:
        start = time.perf_counter()
        try:
            self._engine.step()
        except RequestError:
            self._drop_failed()
        except Exception as error:  # noqa: BLE001  whatever it is, everyone is told
            self._break(error)
            return
        self._report.step_seconds = time.perf_counter() - start
        for job, requests in list(self._jobs.items()):
            for number, request in enumerate(requests):
                if request is None:
                    continue
                for piece in request.take_pieces():
                    self._report.events.append((job, (number, piece)))
                if request.finish_reason is not None:
                    self._report.ended.append(request.finish_reason)
                    requests[number] = None
            if not any(requests):
                del self._jobs[job]

    def _drop_failed(self) -> None:
        for job, requests in list(self._jobs.items()):
            for request in requests:
                if request is not None and request.error is not None:
                    self._report.events.append((job, EngineError(str(request.error))))
                    self._end(job, "failed")
                    break

    def _break(self, error: Exception) -> None:
        self._report.failure = sentence = _sentence(error)
        for job in list(self._jobs):
            self._report.events.append((job, EngineError(sentence)))
            self._end(job, "failed")

    def _end(self, job: Job, reason: str) -> None:
        for request in self._jobs.pop(job, ()):
            if request is not None:
                self._engine.cancel(request)
                self._report.ended.append(reason)

    def _finish(self) -> None:
        for job in list(self._jobs):
            self._report.events.append(
                (job, Unavailable("the server is shutting down.", "shutting_down"))
            )
            self._end(job, "cancelled")
        self._stopped = True


def _sentence(error: Exception) -> str:
    return f"the engine stopped working: {type(error).__name__}: {error}."
