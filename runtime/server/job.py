"""One HTTP request on its way through the engine: a sequence for each of its choices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from graphwright.runtime.request import Piece
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["ACCEPTED", "Accepted", "Event", "Job", "Work"]


@dataclass(frozen=True)
class Work:
    """A sequence to complete: the ids of its prompt, and how to choose tokens."""

    prompt: list[int]
    params: SamplingParams


class Accepted:
    """The engine has taken every sequence of the job."""


ACCEPTED = Accepted()
Event = Accepted | tuple[int, Piece] | Exception


class Job:
    """What the engine says about `work` arrives here, on the event loop."""

    def __init__(self, work: Sequence[Work]) -> None:
        self.work = tuple(work)
        self.submitted = time.perf_counter()
        self.spoke = False  # has its first token come?
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

    async def batches(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """(number of the sequence, what it said) until all have ended: what is there at a time.

        Raises what ended the job.
        """
        while self._open:
            events = [await self._events.get()]
            while not self._events.empty():
                events.append(self._events.get_nowait())
            pieces = [event for event in events if isinstance(event, tuple)]
            if pieces:
                yield pieces
            self._open -= sum(piece.finish_reason is not None for _, piece in pieces)
            for event in events:
                if isinstance(event, Exception):
                    raise event
