"""The step library: compiled code behind a small protocol."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.draws import LARGEST, Draw
from graphwright.runtime.errors import ArtifactError
from graphwright.runtime.memory import ALIGNMENT, is_aligned
from graphwright.runtime.step_code import StepCode, StepPool

__all__ = ["NativeLibrary", "OverlappingLibrary", "StepBuffers", "StepLibrary", "share_threads"]

_COMPILE_AGAIN = "If another version of graphwright wrote it, compile the model again."


@dataclass(frozen=True)
class StepBuffers:
    """Everything a step reads and writes, allocated once, in the order of an entry's arguments.

    batch int32 [8]: T tokens, B sequences, M block-table entries a sequence, R sampled rows; where
    there are several pools of blocks, the numbers from the block table of one to that of the next,
    and of each but the first how many POOL_UNITs it lies behind it in kv; zeros; last: has any
    token an adapter?
    tokens, positions int64 [>= T]; query_start int32 [>= B + 1]; block_table int32 [>= B * M] of
    each pool; sample_rows int32 [>= R]; logits float32 [>= R, V]; arena, weights, kv: bytes. In
    front of kv lie the slots of recurrent states, slot 0 last. Where sequences choose adapters:
    adapters int64 [>= T], row_adapters int64 [>= R].
    """

    batch: NDArray[np.int32]
    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    query_start: NDArray[np.int32]
    block_table: NDArray[np.int32]
    sample_rows: NDArray[np.int32]
    logits: NDArray[np.float32]
    arena: NDArray[np.uint8]
    weights: NDArray[np.uint8]
    kv: NDArray[np.uint8]
    adapters: NDArray[np.int64] | None = None
    row_adapters: NDArray[np.int64] | None = None

    def arrays(self) -> list[NDArray[Any]]:
        """The buffers in argument order, those that there are."""
        every = (getattr(self, each.name) for each in fields(self))
        return [each for each in every if each is not None]


class StepLibrary(Protocol):
    """What the engine needs from compiled code. `entry` is "decode" or "prefill"."""

    @property
    def overlaps(self) -> bool:
        """May a step be started while another one runs? Then it is an OverlappingLibrary."""

    @property
    def takes_largest(self) -> bool:
        """Can a step choose the token of the largest logit?"""

    @property
    def draws(self) -> bool:
        """And draw one?"""

    def run(
        self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
    ) -> NDArray[np.int32] | None:
        """One step over the batch described in `buffers`.

        draws: how it is to choose the token of each sampled row, LARGEST or a draw; none: it is not
        to choose. It returns their ids [>= R], of equal logits the lowest; -1 where a logit is NaN,
        -2 where the largest is infinite and one was to be drawn. Without `logits` nobody reads the
        logits in `buffers`.
        """


class OverlappingLibrary(StepLibrary, Protocol):
    """One whose steps run elsewhere, in their order, while the host prepares the next one."""

    def start(self, entry: str, buffers: StepBuffers, draws: Sequence[Draw], logits: bool) -> Any:
        """As `run`, but it does not wait: what it returns is for `finish`. `buffers` may describe
        another step from then on.

        Two steps may be open, if the host reads no logits of them. A token -1 - row is what the
        step in front chooses for its sampled `row`.
        """

    def finish(self, ticket: Any) -> NDArray[np.int32] | None:
        """Waits for a step; what it returns holds until another step is started."""


class NativeLibrary:
    """The step library of an artifact, on `threads` threads. pin: as in StepPool.

    Raises ArtifactError when the library does not load, RequestError without threads.
    """

    overlaps = False
    takes_largest = True  # its threads know it when a step ends
    draws = False

    def __init__(
        self, artifact: Artifact, threads: int, *, own_bytes: int, alone_rows: int, rows: int,
        pin: bool = False,
    ) -> None:  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
            path = _extract(artifact, artifact.variant().library, Path(folder))
            try:
                code = StepCode(path)
            except OSError as error:
                raise ArtifactError(
                    f"the step library of {artifact.path} does not load: {error}. {_COMPILE_AGAIN}"
                ) from error
            except AttributeError as error:
                raise ArtifactError(
                    f"the step library of {artifact.path} lacks a function: {error}. "
                    f"{_COMPILE_AGAIN}"
                ) from error
        self._code = code
        self._marks: NDArray[np.int64] | None = None
        self._artifact, self._threads, self._pin = artifact, threads, pin
        self._sizes = own_bytes, alone_rows, rows
        self.pool = StepPool(
            code, threads, own_bytes=own_bytes, alone_rows=alone_rows, rows=rows, pin=pin
        )
        self._chosen = np.zeros(rows, np.int32)
        self._chosen_address = ctypes.c_void_p(self._chosen.ctypes.data)
        self._buffers: StepBuffers | None = None
        self._pointers = (ctypes.c_void_p * 0)()

    def run(
        self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
    ) -> NDArray[np.int32] | None:
        """One native call. Raises RuntimeError when the code reports a failure."""
        if buffers is not self._buffers:
            self._bind(buffers)
        assert all(each is LARGEST for each in draws), "its steps do not draw"
        chosen = self._chosen_address if draws else None
        self.pool.run(entry, self._pointers, chosen, self._code)
        return self._chosen if draws else None

    def mark(self, marks: NDArray[np.int64] | None) -> None:
        """From now on steps write the clock, in ns, into `marks` [threads, 1 + 2 * phases]: at
        their start, and of each phase when its kernel and its barrier are done. None: no more.

        Raises ArtifactError for a library that cannot.
        """
        self._marks = marks
        try:
            self._code.mark(marks)
        except AttributeError as error:
            raise ArtifactError(
                f"the step library lacks a function: {error}. {_COMPILE_AGAIN}"
            ) from error

    @property
    def phases(self) -> int:
        """The most of an entry."""
        return max(map(len, self._artifact.json("phases.json").values()))

    def _bind(self, buffers: StepBuffers) -> None:
        arrays = buffers.arrays()
        for name, array in zip((each.name for each in fields(buffers)), arrays, strict=False):
            # Compiled vector loads trust this; a wrong address would end the process.
            assert is_aligned(array), f"'{name}' is not aligned to {ALIGNMENT} bytes"
        # threads shared with a library whose steps take more pointers pass on as many of these
        count = len(fields(buffers))
        self._pointers = (ctypes.c_void_p * count)(*(each.ctypes.data for each in arrays))
        self._buffers = buffers


def share_threads(first: NativeLibrary, second: NativeLibrary) -> None:
    """From now on the steps of both run on the same threads, never at the same time: threads of the
    second that wait for its next step would hinder those that run one of the first. Of steps of the
    second, only logits may be asked for.
    """
    own, alone, rows = zip(first._sizes, second._sizes, strict=True)
    pool = StepPool(
        first._code, first._threads, own_bytes=max(own), alone_rows=min(alone), rows=max(rows),
        pin=first._pin, phases=max(first.phases, second.phases),
    )  # fmt: skip
    for each in (first, second):
        each.pool.close()
        each.pool = pool


def _extract(artifact: Artifact, name: str, folder: Path) -> Path:
    path = folder / Path(name).name
    try:
        path.write_bytes(artifact.view(name))
    except OSError as error:
        raise ArtifactError(
            f"cannot unpack '{name}' of {artifact.path} to {folder}: {error.strerror}. "
            "Set TMPDIR to a folder with room for it."
        ) from error
    return path
