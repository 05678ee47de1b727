"""The engine: an artifact that answers. It owns all memory, and runs steps until all is said."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.adapters import adapter_number, adapter_of_each
from graphwright.runtime.artifact import Artifact
from graphwright.runtime.cuda.program import LAUNCHES
from graphwright.runtime.dlpack import DeviceTensor, Exporter, is_on_gpu
from graphwright.runtime.draft_artifact import DraftSetup
from graphwright.runtime.draft_speculator import DraftSpeculator
from graphwright.runtime.errors import RequestError
from graphwright.runtime.grammar_matcher import Grammars
from graphwright.runtime.invariance import check_invariance
from graphwright.runtime.library import (
    NativeLibrary,
    StepLibrary,
)
from graphwright.runtime.logit_changes import LogitChanges
from graphwright.runtime.model_memory import ModelMemory
from graphwright.runtime.plan import Plan
from graphwright.runtime.request import Output, Piece, Request
from graphwright.runtime.sampling_params import Sampling, SamplingParams
from graphwright.runtime.scheduler import Scheduler
from graphwright.runtime.speculation import make_speculator
from graphwright.runtime.stepper import Stepper
from graphwright.runtime.steps import Sequence as TokenSequence
from graphwright.runtime.threads import choose_affinity, choose_threads
from graphwright.runtime.tokenizer import eos_ids, read_tokenizer

__all__ = ["Engine"]

Prompt = str | Sequence[int] | Exporter


class Engine:
    """Runs an artifact for up to `max_sequences` sequences of `context` tokens at a time.

    context: default the model's own, at most 2048. threads, affinity: see runtime/threads.py.
    verify: check every byte of the file first, unless that was done since it was written. mmap:
    read weights where the file is mapped; else, on CPUs, from a copy in memory of its own, which
    takes longer to load and may be faster to read. prefix_cache: use the keys and values of earlier
    prompts that begin alike (runtime/prefix_cache.py), which may round otherwise than computing
    them again; of models with recurrent or rolling states, `snapshots` of those are kept for it
    (runtime/sequence_states.py; default: four for each sequence). speculate: 'lookup' guesses the
    next tokens from what the text says elsewhere and checks several in one step, which may round
    otherwise, too (runtime/speculation.py); 'draft:FILE' lets a smaller artifact with the same
    tokens guess, and tokens are drawn by another rule then (runtime/race.py), whatever it guesses;
    'lookup:3' and 'draft:FILE:3' guess at most three at a time. Only on CPUs, and not for models
    with states. batch_invariant: what a sequence computes is bit for bit what it computes alone,
    whatever runs beside it (docs/server.md); on CPUs, for integer weights. adapter: the name of the
    one of the file's adapters that requests get which name none (docs/adapters.md). library,
    draft_library: instead of the artifacts' compiled code (tests).

    memory: what it has allocated, by the plan. draft: the model that guesses, with a memory of its
    own; None without one.
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
        prefix_cache: bool = False,
        snapshots: int | None = None,
        speculate: str | None = None,
        batch_invariant: bool = False,
        adapter: str | None = None,
        library: StepLibrary | None = None,
        draft_library: StepLibrary | None = None,
    ) -> None:
        start = time.perf_counter()
        if not isinstance(artifact, Artifact):
            artifact = Artifact.open(artifact, verify=verify)
        self.artifact = artifact
        self.plan = Plan.from_json(artifact.json("plan.json"))
        self.context = self.plan.context_for(context)
        self.max_sequences = max_sequences = self.plan.sequences_for(max_sequences)
        self.adapter = adapter
        adapter_number(self.plan, adapter)
        self.threads, pinned = choose_threads(threads), choose_affinity(affinity)
        self.tokenizer = read_tokenizer(artifact)
        self.generation_config = artifact.settings("generation_config.json")
        self.eos_ids = eos_ids(self.generation_config, self.tokenizer)
        self.grammars = Grammars(self.tokenizer, self.plan.vocab_size, self.eos_ids)
        mapped = mmap or LAUNCHES in artifact
        parts = ModelMemory(
            artifact, self.plan, max_sequences, self.context, mapped=mapped,
            prefix_cache=prefix_cache,
            snapshots=_snapshots(self.plan, prefix_cache, snapshots, max_sequences),
        )  # fmt: skip
        self.memory, self._buffers, self._pool = parts.memory, parts.buffers, parts.pools
        self._scheduler = Scheduler(
            self.plan.entries, self._pool, max_sequences, parts.prefixes, batch_invariant,
            parts.states,
        )  # fmt: skip
        self._library = library or _library_of(artifact, self.plan, self.threads, pinned)
        if parts.states is not None and hasattr(self._library, "copy_caches"):
            parts.states.memory.copy = self._library.copy_caches  # they lie in a memory of its own
        if batch_invariant:
            check_invariance(self.plan, self._library, parts.prefixes is not None, speculate)
        setup = DraftSetup(
            artifact, self.plan, self.tokenizer, self._library, max_sequences, self.context,
            threads=self.threads, pinned=pinned, verify=verify, mapped=mmap,
            prefix_cache=prefix_cache, draft_library=draft_library,
        )  # fmt: skip
        speculator = make_speculator(speculate, self.plan, self._library, setup.open)
        self.draft = speculator.draft if isinstance(speculator, DraftSpeculator) else None
        self._stepper = Stepper(
            self._library, self._scheduler, self._buffers, parts.blocks_each, speculator,
            len(self.plan.adapters),
        )  # fmt: skip
        self.statistics = self._stepper.statistics
        self.load_seconds = time.perf_counter() - start

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        on_piece: Callable[[int, Piece], None] | None = None,
        return_logits: bool = False,
    ) -> list[Output]:
        """Completes all prompts (texts, token ids, or ids in a tensor on the GPU), together; one
        Output each, in order.

        params: one for all, or one each. adapter: the name of one of the file's adapters, for all
        or for each, None for the engine's. on_piece(prompt number, piece) is called as text
        appears.
        """
        each = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
        if len(each) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts came with {len(each)} SamplingParams.")
        names = adapter_of_each(adapter, len(prompts))
        requests = [
            self._request(prompt, chosen, return_logits, name)
            for prompt, chosen, name in zip(prompts, each, names, strict=True)
        ]
        try:
            for request in requests:
                self._stepper.add(request)
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
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Generator[Piece, None, None]:
        """Completes one prompt, piece by piece. Closing the iterator early cancels the request."""
        request = self.submit(prompt, params, adapter=adapter)
        try:
            while True:
                yield from request.take_pieces()
                if request.finished:
                    return
                self.step()
        finally:
            self.cancel(request)

    def submit(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Request:
        """Queues a prompt; `step` moves it on. Raises RequestError for a prompt that cannot run."""
        request = self._request(prompt, params, False, adapter)
        self._stepper.add(request)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request now and frees its cache; nothing happens when it is finished."""
        self._stepper.remove(request)

    def step(self) -> bool:
        """One native step over everything that is ready. False: there was nothing to do.

        Where steps overlap, the one behind it has been started on return. Raises RequestError when
        a request fails; it has ended then, with `error`, and the others have their tokens.
        """
        return self._stepper.step()

    @property
    def library(self) -> StepLibrary:
        """The code that runs the steps."""
        return self._library

    def prefill_logits(
        self, token_ids: Sequence[int], *, fetch: bool = True, adapter: str | None = None
    ) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
        """(position of the first row, logits float32 [n, V]) over all positions, chunk by chunk.

        The rows are overwritten by the next step. Other requests must not be running. Without
        `fetch` a GPU's rows stay where they are.
        """
        number = adapter_number(self.plan, adapter or self.adapter)
        sequence = TokenSequence(self._checked(token_ids, room=0), every_row=True, adapter=number)
        self._stepper.drop_ended()
        assert not self._scheduler.running, "prefill_logits while other requests are running"
        self._scheduler.add(sequence)
        try:
            while (step := self._scheduler.next_step()) is not None:
                self._stepper.run(step, logits=fetch)
                (chunk,) = step.chunks
                yield chunk.start, self._buffers.logits[: chunk.count]
        finally:
            self._scheduler.remove(sequence)

    def logits(
        self, token_ids: Sequence[int], *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        """Logits float32 [T, V] at every position of `token_ids`."""
        found = self.prefill_logits(token_ids, adapter=adapter)
        return np.concatenate([rows.copy() for _, rows in found])

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

    def _request(
        self, prompt: Prompt, params: SamplingParams | None, keep_logits: bool,
        adapter: str | None = None,
    ) -> Request:  # fmt: skip
        sampling = (params or SamplingParams()).resolve(self.generation_config)
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("the artifact has no tokenizer: give the prompt as token ids.")
            prompt = self.tokenizer.encode(prompt) if prompt else ()
        ids: Any = self._gpu_library().token_ids(prompt) if is_on_gpu(prompt) else prompt
        if sampling.stop and self.tokenizer is None:
            raise RequestError("the artifact has no tokenizer: stop texts cannot be found.")
        return Request(
            self._checked(ids, room=min(1, sampling.max_tokens)),
            sampling,
            vocab_size=self.plan.vocab_size,
            context=self.context,
            eos_ids=self.eos_ids,
            decoder=self.tokenizer,
            keep_logits=keep_logits,
            changes=self._changes(sampling),
            races=self.draft is not None,
            adapter=adapter_number(self.plan, adapter or self.adapter),
        )

    def _changes(self, sampling: Sampling) -> LogitChanges | None:
        matcher = None
        if sampling.grammar is not None:
            matcher = self.grammars.matcher(sampling.grammar, sampling.ignore_eos)
        ends = sampling.ends(self.eos_ids)
        changes = LogitChanges(sampling, self.plan.vocab_size, matcher, ends)
        return None if changes.empty else changes

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


def _snapshots(plan: Plan, prefix_cache: bool, asked: int | None, sequences: int) -> int:
    if not prefix_cache and asked:
        raise RequestError(
            f"{asked} snapshots were asked for, and without a prefix cache there are none: leave "
            "snapshots out, or ask for the cache (Engine: prefix_cache=True)."
        )
    return plan.snapshots_for(asked, sequences) if prefix_cache else 0


def _library_of(artifact: Artifact, plan: Plan, threads: int, pinned: bool) -> StepLibrary:
    if LAUNCHES in artifact:
        from graphwright.runtime.cuda.library import CudaLibrary

        return CudaLibrary(artifact)
    return NativeLibrary(
        artifact, threads, own_bytes=plan.arena_bytes, alone_rows=plan.alone_rows, rows=plan.rows,
        pin=pinned,
    )  # fmt: skip
