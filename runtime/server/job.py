"""One HTTP request on its way through the engine: a sequence for each of its choices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from graphwright.runtime.request import Piece
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["ACCEPTED", "Accepted", "Event", "Job", "Pieces", "Work"]


@dataclass(frozen=True)
class Work:
    """A sequence to complete: the ids of its prompt, how to choose tokens, and by which adapter."""

    prompt: list[int]
    params: SamplingParams
    adapter: str | None = None


class Accepted:
    """The engine has taken every sequence of the job."""


ACCEPTED = Accepted()
Pieces = list[tuple[int, Piece]]  # each with the number of its sequence in the job
Event = Accepted | Pieces | Exception


class Job:
    """What the engine says about `work` arrives here, on the event loop.

    stream: after each step; else when all sequences have ended. reused: tokens of each sequence's
    prompt that were not computed, once it has ended.
    """

    def __init__(self, work: Sequence[Work], stream: bool) -> None:
        self.work = tuple(work)
        self.stream = stream
        self.reused = [0] * len(self.work)
        self.submitted = time.perf_counter()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._open = len(self.work)

    def put(self, event: Event) -> None:
        """Adds an event; on the event loop only."""
        self._events.put_nowait(event)

    async def accepted(self) -> None:
        """Waits until the engine has taken the job. Raises RequestError when it refuses it."""
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        assert isinstance(event, Accepted), "the first event says whether a job was taken"

    async def pieces(self) -> AsyncIterator[Pieces]:
        """What is there at a time, until all sequences have ended. Raises what ended the job."""
        while self._open:
            found: Pieces = []
            failure: Exception | None = None
            event: Event = await self._events.get()
            while True:
                if isinstance(event, list):
                    found += event
                elif isinstance(event, Exception):
                    failure = event
                if self._events.empty():
                    break
                event = self._events.get_nowait()
            self._open -= sum(piece.finish_reason is not None for _, piece in found)
            if found:
                yield found
            if failure is not None:
                raise failure
