"""The engine: an artifact that answers. It owns all memory, and runs steps until all is said."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.candidates import Candidates
from graphwright.runtime.cuda.program import LAUNCHES
from graphwright.runtime.dlpack import DeviceTensor, Exporter, is_on_gpu
from graphwright.runtime.errors import RequestError
from graphwright.runtime.kv_cache import BlockPool
from graphwright.runtime.library import (
    NativeLibrary,
    OverlappingLibrary,
    StepBuffers,
    StepLibrary,
)
from graphwright.runtime.memory import Memory
from graphwright.runtime.plan import Plan
from graphwright.runtime.request import Output, Piece, Request
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.scheduler import Scheduler, Step
from graphwright.runtime.scheduler import Sequence as TokenSequence
from graphwright.runtime.statistics import Statistics
from graphwright.runtime.threads import choose_affinity, choose_threads
from graphwright.runtime.tokenizer import Tokenizer, read_tokenizer

__all__ = ["DEFAULT_CONTEXT", "Engine"]

DEFAULT_CONTEXT = 2048
Prompt = str | Sequence[int] | Exporter


@dataclass(frozen=True)
class _Flight:
    """A step that was started and not looked at yet. requests: one a sampled row, all greedy.
    start: when it may have begun, if the step in front had ended by then.
    """

    step: Step
    requests: list[Request]
    ticket: Any
    start: float


class Engine:
    """Runs an artifact for up to `max_sequences` sequences of `context` tokens at a time.

    context: default the model's own, at most 2048. threads, affinity: see runtime/threads.py.
    verify: check every byte of the file first, unless that was done since it was written. mmap:
    read weights where the file is mapped; else, on CPUs, from a copy in memory of its own, which
    takes longer to load and may be faster to read. library: instead of the artifact's compiled code
    (tests).
    Not for several threads at once. Raises ArtifactError, RequestError.
    """

    def __init__(
        self,
        artifact: str | Path | Artifact,
        *,
        max_sequences: int = 8,
        context: int | None = None,
        threads: int | None = None,
        affinity: str | None = None,
        verify: bool = True,
        mmap: bool = True,
        library: StepLibrary | None = None,
    ) -> None:
        start = time.perf_counter()
        if not isinstance(artifact, Artifact):
            artifact = Artifact.open(artifact, verify=verify)
        self.artifact = artifact
        self.plan = Plan.from_json(artifact.json("plan.json"))
        self.context, self.max_sequences = _context(self.plan, context), max_sequences
        self.threads, pinned = choose_threads(threads), choose_affinity(affinity)
        self.tokenizer = read_tokenizer(artifact)
        self.generation_config = _generation_config(artifact)
        self.eos_ids = _eos_ids(self.generation_config, self.tokenizer)
        prefill = self.plan.entries["prefill"]
        most = min(prefill.max_tokens, prefill.max_rows)
        if not 1 <= max_sequences <= most:
            raise RequestError(f"max_sequences must be from 1 to {most}, not {max_sequences}.")
        blocks_each = -(-self.context // self.plan.block_size)
        self.memory = Memory(_planned(self.plan, max_sequences, blocks_each))
        weights = _weights(artifact, self.memory, mmap or LAUNCHES in artifact)
        self._buffers = _allocate(self.plan, self.memory, weights, max_sequences, blocks_each)
        self._blocks_each = blocks_each
        self._pool = BlockPool(max_sequences * blocks_each, max_sequences)
        self._scheduler = Scheduler(
            self.plan.entries, self._pool, self.plan.block_size, blocks_each, max_sequences
        )
        self._library = library or _library_of(artifact, self.plan, self.threads, pinned)
        self._overlapping = cast(OverlappingLibrary, self._library)  # used if it is one
        self._requests: dict[TokenSequence, Request] = {}
        self._flights: list[_Flight] = []  # in their order, at most two
        self._last_end = 0.0  # when the last step ended
        self.statistics = Statistics()
        self.load_seconds = time.perf_counter() - start

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_piece: Callable[[int, Piece], None] | None = None,
        return_logits: bool = False,
    ) -> list[Output]:
        """Completes all prompts (texts, token ids, or ids in a tensor on the GPU), together; one
        Output each, in order.

        params: one for all, or one each. on_piece(prompt number, piece) is called as text appears.
        """
        each = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
        if len(each) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts came with {len(each)} SamplingParams.")
        requests = [
            self._request(prompt, chosen, return_logits)
            for prompt, chosen in zip(prompts, each, strict=True)
        ]
        try:
            for request in requests:
                self._enqueue(request)
            while not all(request.finished for request in requests):
                self.step()
                for number, request in enumerate(requests):
                    for piece in request.take_pieces():
                        if on_piece is not None:
                            on_piece(number, piece)
        finally:
            for request in requests:
                self.cancel(request)
        return [request.output() for request in requests]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> Generator[Piece, None, None]:
        """Completes one prompt, piece by piece. Closing the iterator early cancels the request."""
        request = self.submit(prompt, params)
        try:
            while True:
                yield from request.take_pieces()
                if request.finished:
                    return
                self.step()
        finally:
            self.cancel(request)

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> Request:
        """Queues a prompt; `step` moves it on. Raises RequestError for a prompt that cannot run."""
        request = self._request(prompt, params, keep_logits=False)
        self._enqueue(request)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request now and frees its cache; nothing happens when it is finished."""
        self._scheduler.remove(request.sequence)
        self._requests.pop(request.sequence, None)

    def step(self) -> bool:
        """One native step over everything that is ready. False: there was nothing to do.

        Where steps overlap, the one behind it has been started on return, if tokens that nobody
        has seen yet can change nothing of it but who has ended. Raises RequestError when a request
        fails; it has ended then, with `error`, and the others have their tokens.
        """
        start = time.perf_counter()
        if self._flights:
            self._drop_ended()
        if self._flights:
            self._finish_flight()
            return True
        step = self._scheduler.next_step()
        if step is None:
            return False
        requests = [self._requests[chunk.sequence] for chunk in step.chunks if chunk.rows]
        most = self._library.candidates
        wanted = [request.candidates(most) for request in requests]
        logits = 0 in wanted or any(request.keeps_logits for request in requests)
        largest = max(wanted, default=0)
        if self._library.overlaps and largest == 1 and not logits:
            self._start(step, requests, start)
            self._finish_flight()
        else:
            known = self._run(step, largest, logits)
            self._accept(step, enumerate(requests), known, start)
        return True

    def _start(self, step: Step, requests: list[Request], start: float) -> None:
        _describe(step, self._buffers, self._blocks_each)
        ticket = self._overlapping.start(step.entry, self._buffers, 1, False)
        self._flights.append(_Flight(step, requests, ticket, start))
        for chunk in step.chunks:
            chunk.sequence.computed += chunk.count

    def _start_behind(self, front: _Flight) -> None:
        """Starts the step behind `front`, unless it depends on what that one will say."""
        going = {
            request.sequence: row
            for row, request in enumerate(front.requests)
            if request.sequence in self._requests and not request.ends_next
        }
        step = self._scheduler.step_behind(going)
        if step is not None:
            requests = [self._requests[sequence] for sequence in going]
            self._start(step, requests, front.start)

    def _finish_flight(self) -> None:
        """Starts the step behind the first in flight, if that can be, then waits for the first."""
        front = self._flights[0]
        if len(self._flights) == 1:
            self._start_behind(front)
        known = self._overlapping.finish(front.ticket)
        self._flights.pop(0)
        step, start = front.step, max(front.start, self._last_end)
        rows = [each for each in enumerate(front.requests) if each[1].sequence in self._requests]
        if len(rows) < len(front.requests):  # some have ended since: their rows mean nothing
            live = tuple(chunk for chunk in step.chunks if chunk.sequence in self._requests)
            step = replace(step, chunks=live)
        self._accept(step, rows, known, start)

    def _drop_ended(self) -> None:
        """Waits for steps in flight whose requests have all ended: nobody wants what they say."""
        while self._flights:
            front = self._flights[0]
            if any(request.sequence in self._requests for request in front.requests):
                return
            self._overlapping.finish(front.ticket)
            self._flights.pop(0)

    def _accept(
        self, step: Step, rows: Iterable[tuple[int, Request]], known: Candidates | None,
        start: float,
    ) -> None:  # fmt: skip
        """Gives each request what a step says in its row; the step took from `start` to now."""
        failed: BaseException | None = None
        for row, request in rows:
            try:
                request.accept(self._buffers.logits[row], known, row)
            except BaseException as error:  # noqa: BLE001  the others get their tokens first
                failed = error
                request.error = _as_request_error(error)
            if request.finished:
                self.cancel(request)
        self._last_end = time.perf_counter()
        self.statistics.count(step, self._last_end - start)
        if failed is not None:
            raise failed

    @property
    def library(self) -> StepLibrary:
        """The code that runs the steps."""
        return self._library

    def prefill_logits(
        self, token_ids: Sequence[int], *, fetch: bool = True
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(position of the first row, logits float32 [n, V]) over all positions, chunk by chunk.

        The rows are overwritten by the next step. Other requests must not be running. Without
        `fetch` a GPU's rows stay where they are.
        """
        sequence = TokenSequence(self._checked(token_ids, room=0), every_row=True)
        self._drop_ended()
        assert not self._scheduler.running, "prefill_logits while other requests are running"
        self._scheduler.add(sequence)
        try:
            while (step := self._scheduler.next_step()) is not None:
                self._run(step, logits=fetch)
                (chunk,) = step.chunks
                yield chunk.start, self._buffers.logits[: chunk.count]
        finally:
            self._scheduler.remove(sequence)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits float32 [T, V] at every position of `token_ids`."""
        return np.concatenate([rows.copy() for _, rows in self.prefill_logits(token_ids)])

    def device_logits(self, token_ids: Exporter) -> DeviceTensor:
        """As `logits`, from token ids in a tensor on the GPU to a tensor there, for
        `torch.from_dlpack` and its like: logits never pass the host. Raises RequestError.
        """
        library = self._gpu_library()
        ids = library.token_ids(token_ids)
        found: DeviceTensor = library.new_rows(len(ids), self.plan.vocab_size)
        for first, part in self.prefill_logits(ids, fetch=False):
            library.keep_rows(found, first, len(part))
        return found

    def _gpu_library(self) -> Any:
        if not hasattr(self._library, "token_ids"):
            raise RequestError("token ids on a GPU need an artifact for GPUs; this one is not.")
        return self._library

    def _run(self, step: Step, largest: int = 0, logits: bool = True) -> Candidates | None:
        _describe(step, self._buffers, self._blocks_each)
        found = self._library.run(step.entry, self._buffers, largest, logits)
        for chunk in step.chunks:
            chunk.sequence.computed += chunk.count
        return found

    def _enqueue(self, request: Request) -> None:
        self._requests[request.sequence] = request
        self._scheduler.add(request.sequence)

    def _request(self, prompt: Prompt, params: SamplingParams | None, keep_logits: bool) -> Request:
        sampling = (params or SamplingParams()).resolve(self.generation_config)
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("the artifact has no tokenizer: give the prompt as token ids.")
            prompt = self.tokenizer.encode(prompt) if prompt else ()
        ids: Any = self._gpu_library().token_ids(prompt) if is_on_gpu(prompt) else prompt
        if sampling.stop and self.tokenizer is None:
            raise RequestError("the artifact has no tokenizer: stop texts cannot be found.")
        return Request(
            self._checked(ids, room=1),
            sampling,
            vocab_size=self.plan.vocab_size,
            context=self.context,
            eos_ids=self.eos_ids,
            decoder=self.tokenizer,
            keep_logits=keep_logits,
        )

    def _checked(self, token_ids: Sequence[int], room: int) -> list[int]:
        ids = [int(each) for each in token_ids]
        vocab = self.plan.vocab_size
        if not ids:
            raise RequestError("the prompt is empty: it needs at least one token.")
        wrong = next((each for each in ids if not 0 <= each < vocab), None)
        if wrong is not None:
            raise RequestError(
                f"the prompt has the token id {wrong}; this model's ids are 0 to {vocab - 1}."
            )
        if len(ids) + room > self.context:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, but the context holds {self.context}"
                f"{' with at least one to generate' if room else ''}; shorten it or ask for a "
                f"longer context (the model's limit: {self.plan.max_context or 'none'})."
            )
        return ids


def _as_request_error(error: BaseException) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return RequestError(f"the request ended with an error of the engine: {error!r}.")


def _describe(step: Step, buffers: StepBuffers, blocks_each: int) -> None:
    """Writes a step's batch into the buffers the compiled code reads."""
    token = row = 0
    for number, chunk in enumerate(step.chunks):
        sequence, end = chunk.sequence, token + chunk.count
        if chunk.count == 1:  # numbers one by one take a tenth of the time of slices
            known, front = sequence.tokens, chunk.front
            buffers.tokens[token] = known[chunk.start] if front is None else -1 - front
            buffers.positions[token] = chunk.start
        else:
            stop = chunk.start + chunk.count
            buffers.tokens[token:end] = sequence.tokens[chunk.start : stop]
            buffers.positions[token:end] = np.arange(chunk.start, stop)
        buffers.query_start[number] = token
        assert sequence.table is not None
        blocks = sequence.table.blocks
        buffers.block_table[number * blocks_each : number * blocks_each + len(blocks)] = blocks
        if chunk.rows == 1:
            buffers.sample_rows[row] = end - 1
        else:
            buffers.sample_rows[row : row + chunk.rows] = np.arange(end - chunk.rows, end)
        token, row = end, row + chunk.rows
    count = len(step.chunks)
    buffers.query_start[count] = token
    buffers.batch[:4] = (token, count, blocks_each, row)


def _planned(plan: Plan, max_sequences: int, blocks_each: int) -> dict[str, int]:
    tokens = max(entry.max_tokens for entry in plan.entries.values())
    rows = max(entry.max_rows for entry in plan.entries.values())
    return {
        "weights": plan.weights_bytes,
        "arena": plan.arena_bytes,
        "kv": sum(plan.kv_bytes(max_sequences, max_sequences * blocks_each)),
        "logits": rows * plan.vocab_size * 4,
        "batch": 32 + 16 * tokens + 4 * (max_sequences + 1 + max_sequences * blocks_each + rows),
    }


def _weights(artifact: Artifact, memory: Memory, mapped: bool) -> NDArray[np.uint8]:
    """The weights region where the file is mapped, or a copy of it."""
    weights = np.frombuffer(artifact.view("weights.bin"), np.uint8)
    artifact.will_need("weights.bin")
    if mapped:
        memory.count("weights", weights.nbytes)
        return weights
    copy = memory.allocate("weights", weights.nbytes)
    artifact.copy("weights.bin", copy.data)
    return copy


def _allocate(
    plan: Plan, memory: Memory, weights: NDArray[np.uint8], max_sequences: int, blocks_each: int
) -> StepBuffers:
    tokens = max(entry.max_tokens for entry in plan.entries.values())
    rows = max(entry.max_rows for entry in plan.entries.values())
    slots, blocks = plan.kv_bytes(max_sequences, max_sequences * blocks_each)
    return StepBuffers(
        batch=memory.allocate("batch", 8, np.int32),
        tokens=memory.allocate("batch", tokens, np.int64),
        positions=memory.allocate("batch", tokens, np.int64),
        query_start=memory.allocate("batch", max_sequences + 1, np.int32),
        block_table=memory.allocate("batch", max_sequences * blocks_each, np.int32),
        sample_rows=memory.allocate("batch", rows, np.int32),
        logits=memory.allocate("logits", rows * plan.vocab_size, np.float32).reshape(rows, -1),
        arena=memory.allocate("arena", plan.arena_bytes),
        weights=weights,
        kv=memory.allocate("kv", slots + blocks)[slots:],
    )


def _library_of(artifact: Artifact, plan: Plan, threads: int, pinned: bool) -> StepLibrary:
    if LAUNCHES in artifact:
        from graphwright.runtime.cuda.library import CudaLibrary

        return CudaLibrary(artifact)
    return NativeLibrary(
        artifact, threads, own_bytes=plan.arena_bytes, alone_rows=plan.alone_rows, rows=plan.rows,
        pin=pinned,
    )  # fmt: skip


def _context(plan: Plan, asked: int | None) -> int:
    limit = plan.max_context
    if asked is None:
        return min(limit or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    if asked < 1 or (limit is not None and asked > limit):
        raise RequestError(
            f"the context must be from 1 to {limit or 'any number of'} tokens, not {asked}."
        )
    return asked


def _generation_config(artifact: Artifact) -> dict[str, Any]:
    name = "generation_config.json"
    return dict(artifact.json(name)) if name in artifact else {}


def _eos_ids(config: dict[str, Any], tokenizer: Tokenizer | None) -> frozenset[int]:
    found = config.get("eos_token_id", tokenizer.eos_id if tokenizer else None)
    if found is None:
        return frozenset()
    return frozenset([found] if isinstance(found, int) else found)
