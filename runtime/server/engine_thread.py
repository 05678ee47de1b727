"""The one thread that owns the engine: jobs come in, steps run over all of them, pieces go out.

Everything public here is called on the event loop; what the thread has done reaches it in one
report after a step. An engine is not for several threads, and on a GPU only for the one that made
it, so this one makes it and none but this one moves it on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.request import Request
from graphwright.runtime.server.errors import EngineError, Unavailable
from graphwright.runtime.server.job import ACCEPTED, Event, Job, Pieces, Work
from graphwright.runtime.server.metrics import Metrics

__all__ = ["EngineThread"]

_LONGEST_STEP = 30.0  # seconds that the end waits for one
_LONGEST_SILENCE = 0.1  # seconds between reports to /metrics when nobody waits for anything


@dataclass
class _Report:
    """What happened since the last one. ended: sequences that left the engine, by reason. reused:
    tokens of their prompts that were not computed.
    """

    events: list[tuple[Job, Event]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    tokens: int = 0
    reused: int = 0
    # Since the start: guesses, their tokens, right ones, seconds.
    guesses: tuple[int, int, int, float] = (0, 0, 0, 0.0)
    step_seconds: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)
    failure: str | None = None


class _Live:
    """A job in the engine. requests: None once they have ended. pieces: not reported yet."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests: list[Request | None] = list(requests)
        self.pieces: Pieces = []
        self.spoke = False

    @property
    def open(self) -> list[tuple[int, Request]]:
        """The requests that have not ended, by number."""
        return [(n, each) for n, each in enumerate(self.requests) if each is not None]


class EngineThread:
    """Makes an engine and runs it for up to engine.max_sequences sequences at a time, with `queue`
    more waiting.

    engine: for what does not change of it. failure: the sentence that says why it stopped working;
    None while it works. Raises what make_engine raises.
    """

    def __init__(self, make_engine: Callable[[], Engine], queue: int, metrics: Metrics) -> None:
        self.failure: str | None = None
        self.metrics = metrics
        self._live = 0
        self._closing = False
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        # These are the thread's own.
        self._jobs: dict[Job, _Live] = {}
        self._report, self._reported = _Report(), 0.0
        self._stopped = False
        made: Future[Engine] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(make_engine, made), name="engine", daemon=True
        )
        self._thread.start()
        self.engine = made.result()
        self.capacity = self.engine.max_sequences + queue

    @property
    def running(self) -> int:
        """Sequences in the engine's batch."""
        return min(self._live, self.engine.max_sequences)

    @property
    def waiting(self) -> int:
        """Sequences that have been taken and wait for a place in the batch."""
        return self._live - self.running

    def start(self) -> None:
        """Reports come to the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """Ends every job, and the thread, which is left alone when its step takes too long."""
        self._closing = True
        self._inbox.put(self._finish)
        await asyncio.to_thread(self._thread.join, _LONGEST_STEP)

    def submit(self, work: Sequence[Work], stream: bool) -> Job:
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
        job = Job(work, stream)
        self._live += len(work)
        self._inbox.put(partial(self._admit, job))
        return job

    def cancel(self, job: Job) -> None:
        """Frees what a job still holds; nothing happens when it has ended."""
        self._inbox.put(partial(self._end, job, "cancelled"))

    def _deliver(self, report: _Report) -> None:
        self._live -= len(report.ended)
        self.failure = report.failure or self.failure
        self.metrics.count(report.ended, report.tokens)
        self.metrics.reused_tokens += report.reused
        if report.step_seconds:
            self.metrics.count_guesses(*report.guesses)
        for seconds in report.step_seconds:
            self.metrics.step_seconds.observe(seconds)
        for seconds in report.first_token_seconds:
            self.metrics.first_token_seconds.observe(seconds)
        for job, event in report.events:
            if event is ACCEPTED:
                self.metrics.prompt_tokens += sum(len(each.prompt) for each in job.work)
            job.put(event)

    # From here on: the thread.

    def _run(self, make_engine: Callable[[], Engine], made: Future[Engine]) -> None:
        try:
            made.set_result(make_engine())
        except BaseException as error:  # noqa: BLE001  raised in the thread that waits for it
            made.set_exception(error)
            return
        while not self._stopped:
            self._take_commands()
            self._send()  # who was refused need not wait for a step
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
        report, now = self._report, time.perf_counter()
        awaited = report.events or report.ended or report.failure
        if awaited or (report.step_seconds and now - self._reported > _LONGEST_SILENCE):
            self._report, self._reported = _Report(), now
            assert self._loop is not None
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._deliver, report)

    def _admit(self, job: Job) -> None:
        requests: list[Request] = []
        try:
            for each in job.work:
                requests.append(self.engine.submit(each.prompt, each.params, adapter=each.adapter))
        except Exception as error:  # noqa: BLE001  the thread must live on
            for request in requests:
                self.engine.cancel(request)
            self._report.ended += ["refused"] * len(job.work)
            if not isinstance(error, RequestError):
                error = EngineError(f"the engine failed on this request: {_words(error)}.")
            self._report.events.append((job, error))
            return
        self._jobs[job] = _Live(requests)
        self._report.events.append((job, ACCEPTED))

    def _step(self) -> None:
        start = time.perf_counter()
        try:
            self.engine.step()
        except RequestError:
            self._drop_failed()
        except Exception as error:  # noqa: BLE001  whatever it is, everyone is told
            self._break(error)
            return
        now = time.perf_counter()
        self._report.step_seconds.append(now - start)
        found = self.engine.statistics
        self._report.guesses = (
            found.drafts, found.drafted_tokens, found.accepted_tokens, found.draft_seconds
        )  # fmt: skip
        for job, live in list(self._jobs.items()):
            self._collect(job, live, now)

    def _collect(self, job: Job, live: _Live, now: float) -> None:
        """Takes what the step has made of a job."""
        before = len(live.pieces)
        for number, request in live.open:
            live.pieces += ((number, piece) for piece in request.take_pieces())
            if request.finish_reason is not None:
                self._report.ended.append(request.finish_reason)
                self._report.reused += request.sequence.reused
                job.reused[number] = request.sequence.reused  # read behind the event of its end
                live.requests[number] = None
        new = live.pieces[before:]
        self._report.tokens += sum(len(piece.token_ids) for _, piece in new)
        if new and not live.spoke:
            live.spoke = True
            self._report.first_token_seconds.append(now - job.submitted)
        ended = not live.open
        if live.pieces and (job.stream or ended):
            self._report.events.append((job, live.pieces))
            live.pieces = []
        if ended:
            del self._jobs[job]

    def _drop_failed(self) -> None:
        """Ends the jobs of which a request has failed; the others go on."""
        for job, live in list(self._jobs.items()):
            errors = [request.error for _, request in live.open if request.error is not None]
            if errors:
                self._end(job, "failed", EngineError(str(errors[0])))

    def _break(self, error: Exception) -> None:
        self._report.failure = sentence = f"the engine stopped working: {_words(error)}."
        for job in list(self._jobs):
            self._end(job, "failed", EngineError(sentence))

    def _end(self, job: Job, reason: str, error: Exception | None = None) -> None:
        if job not in self._jobs:
            return
        if error is not None:
            self._report.events.append((job, error))
        for _, request in self._jobs.pop(job).open:
            self.engine.cancel(request)
            self._report.ended.append(reason)

    def _finish(self) -> None:
        for job in list(self._jobs):
            error = Unavailable("the server is shutting down.", "shutting_down")
            self._end(job, "cancelled", error)
        self._stopped = True


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.')}"
