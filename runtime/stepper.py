"""What moves requests on: steps of an engine's library, one after the other or overlapping."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.adapters import describe_adapters
from graphwright.runtime.buffers import describe
from graphwright.runtime.draws import LARGEST, Draw
from graphwright.runtime.errors import RequestError
from graphwright.runtime.library import OverlappingLibrary, StepBuffers, StepLibrary
from graphwright.runtime.request import Request
from graphwright.runtime.scheduler import Scheduler
from graphwright.runtime.speculation import Speculator, draws_of_rows, rows_that_count
from graphwright.runtime.statistics import Statistics
from graphwright.runtime.steps import Sequence as TokenSequence
from graphwright.runtime.steps import Step

__all__ = ["Stepper"]


@dataclass(frozen=True)
class Flight:
    """A step that was started and not looked at yet. requests: one a sampled row, which it chooses.
    start: when it may have begun, if the step in front had ended by then.
    """

    step: Step
    requests: list[Request]
    ticket: Any
    start: float


class Stepper:
    """Runs what `scheduler` says by `library` and hands its rows to the requests of the sequences.

    buffers: where steps are described, `blocks_each` entries of the block table a sequence.
    speculator: guesses tokens, if the library's steps do not overlap. adapters: how many there are
    to choose of.
    """

    def __init__(
        self, library: StepLibrary, scheduler: Scheduler, buffers: StepBuffers, blocks_each: int,
        speculator: Speculator | None = None, adapters: int = 0,
    ) -> None:  # fmt: skip
        self.requests: dict[TokenSequence, Request] = {}
        self.statistics = Statistics()
        self._library, self._scheduler, self._speculator = library, scheduler, speculator
        self._overlapping = cast(OverlappingLibrary, library)  # used if it is one
        self._buffers, self._blocks_each, self._adapters = buffers, blocks_each, adapters
        self._flights: list[Flight] = []  # in their order, at most two
        self._last_end = 0.0  # when the last step ended

    def add(self, request: Request) -> None:
        """Queues a request."""
        self.requests[request.sequence] = request
        self._scheduler.add(request.sequence)

    def remove(self, request: Request) -> None:
        """Forgets a request and frees its cache; nothing happens when it is unknown."""
        self._scheduler.remove(request.sequence)
        self.requests.pop(request.sequence, None)
        if self._speculator is not None:
            self._speculator.forget(request.sequence)

    def step(self) -> bool:
        """One native step over everything that is ready. False: there was nothing to do.

        Where steps overlap, the one behind it has been started on return, if tokens that nobody
        has seen yet can change nothing of it but who has ended. Raises RequestError when a request
        fails; it has ended then, with `error`, and the others have their tokens.
        """
        start = time.perf_counter()
        if self._flights:
            self.drop_ended()
        if self._flights:
            self._finish_flight()
            return True
        step = self._scheduler.next_step()
        if step is None:
            return False
        requests = [self.requests[chunk.sequence] for chunk in step.chunks if chunk.chooses]
        draws = [request.draw(self._library) for request in requests]
        rows: Iterable[tuple[int, Request]] = enumerate(requests)
        scores = [chunk for chunk in step.chunks if chunk.scored]
        if self._guess(step, requests) or scores:
            rows, draws = rows_that_count(step, requests), draws_of_rows(step, draws)
        asked = [draw for draw in draws if draw is not None]
        logits = len(asked) < len(draws) or any(request.keeps_logits for request in requests)
        if self._library.overlaps and asked and not logits:
            self._start(step, requests, asked, start)
            self._finish_flight()
        else:
            chosen = self.run(step, [each or LARGEST for each in draws] if asked else (), logits)
            failed = self._score(step) if scores else None
            told = (
                (row, each, None if draws[row] is None else _token(chosen, row))
                for row, each in rows
                if each.error is None
            )
            self._accept(step, told, start, failed)
        return True

    def _guess(self, step: Step, requests: list[Request]) -> bool:
        """Adds guessed tokens to a step, where there is a speculator that has any."""
        if self._speculator is None:
            return False
        start = time.perf_counter()
        found = self._speculator.extend(step, requests)
        self.statistics.draft_seconds += time.perf_counter() - start
        return found

    def _start(
        self, step: Step, requests: list[Request], draws: Sequence[Draw], start: float
    ) -> None:
        self._describe(step)
        ticket = self._overlapping.start(step.entry, self._buffers, draws, False)
        self._flights.append(Flight(step, requests, ticket, start))
        for chunk in step.chunks:
            chunk.sequence.computed += chunk.count

    def _describe(self, step: Step) -> None:
        describe(step, self._buffers, self._blocks_each)
        if self._adapters:
            describe_adapters(step, self._buffers, self._adapters)

    def _start_behind(self, front: Flight) -> None:
        """Starts the step behind `front`, unless it depends on what that one will say."""
        going = {
            request.sequence: row
            for row, request in enumerate(front.requests)
            if request.sequence in self.requests and not request.ends_next
        }
        step = self._scheduler.step_behind(going)
        if step is not None:
            requests = [self.requests[sequence] for sequence in going]
            draws = [request.draw(self._library) for request in requests]
            self._start(step, requests, [each for each in draws if each is not None], front.start)

    def _finish_flight(self) -> None:
        """Starts the step behind the first in flight, if that can be, then waits for the first."""
        front = self._flights[0]
        if len(self._flights) == 1:
            self._start_behind(front)
        chosen = self._overlapping.finish(front.ticket)
        self._flights.pop(0)
        step, start = front.step, max(front.start, self._last_end)
        rows = [
            (row, each, _token(chosen, row))
            for row, each in enumerate(front.requests)
            if each.sequence in self.requests
        ]
        if len(rows) < len(front.requests):  # some have ended since: their rows mean nothing
            live = tuple(chunk for chunk in step.chunks if chunk.sequence in self.requests)
            step = replace(step, chunks=live)
        self._accept(step, rows, start)

    def drop_ended(self) -> None:
        """Waits for steps in flight whose requests have all ended: nobody wants what they say."""
        while self._flights:
            front = self._flights[0]
            if any(request.sequence in self.requests for request in front.requests):
                return
            self._overlapping.finish(front.ticket)
            self._flights.pop(0)

    def _score(self, step: Step) -> RequestError | None:
        """Gives requests the rows that say how likely the tokens of their prompts are. The error
        of one that has failed by that.
        """
        failed, first = None, 0
        for chunk in step.chunks:
            if chunk.scored:
                request = self.requests[chunk.sequence]
                try:
                    request.score(chunk.start, self._buffers.logits[first : first + chunk.scored])
                except RequestError as error:
                    failed = request.error = error
                    self.remove(request)
            first += chunk.rows
        return failed

    def _accept(
        self,
        step: Step,
        rows: Iterable[tuple[int, Request, int | None]],
        start: float,
        failed: BaseException | None = None,
    ) -> None:
        """Gives each request what a step says in its row, and the token if it has chosen one; the
        step took from `start` to now. failed: what has gone wrong before.
        """
        for row, request, chosen in rows:
            try:
                request.accept(self._buffers.logits[row], chosen)
            except BaseException as error:  # noqa: BLE001  the others get their tokens first
                failed = error
                request.error = _as_request_error(error)
            if request.finished:
                self.remove(request)
        self._last_end = time.perf_counter()
        self.statistics.count(step, self._last_end - start)
        if failed is not None:
            raise failed

    def run(
        self, step: Step, draws: Sequence[Draw] = (), logits: bool = True
    ) -> NDArray[np.int32] | None:
        """A step from its start to its end, as StepLibrary.run; nobody accepts its tokens."""
        self._describe(step)
        found = self._library.run(step.entry, self._buffers, draws, logits)
        for chunk in step.chunks:
            chunk.sequence.computed += chunk.count - len(chunk.draft)  # some of which may be wrong
        return found


def _token(chosen: NDArray[np.int32] | None, row: int) -> int:
    assert chosen is not None, "the step was to choose"
    return int(chosen[row])


def _as_request_error(error: BaseException) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return RequestError(f"the request ended with an error of the engine: {error!r}.")
