"""The step library of a GPU: weights and caches in its memory, a captured graph for each bucket.

A step's small inputs go into pinned memory, which the first launch of the graph reads; the tokens
that it chooses for its sampled rows are written to such memory by the last launch. So a step is one
replay and one wait, and a copy only where whole rows of logits are wanted. The engine's own arena,
cache and slots stay untouched and take no memory.

That memory is there twice, as two sides. While a step on one side runs, the inputs of the step
behind it are written on the other, and it is started: docs/decisions/0013-overlapped-steps.md.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.cuda.driver import Driver
from graphwright.runtime.cuda.program import Bucket, Launch, Program
from graphwright.runtime.dlpack import DeviceTensor, Exporter, read_tensor
from graphwright.runtime.draws import LARGEST, WORDS, Draw
from graphwright.runtime.library import StepBuffers
from graphwright.runtime.plan import POOL_UNIT, Plan

__all__ = ["CudaLibrary"]

_STAGING = 16 << 20  # bytes of each of the buffers that weights pass through
_LOADERS = 8  # such buffers, and threads that fill them: they share the page faults of the file
_PINNED_ROWS = 64  # of logits; more, as of all tokens of a prompt, are copied to pageable memory
Wanted: TypeAlias = Literal["largest", "drawn"] | None  # of a bucket's launches
_INPUTS = ("batch", "tokens", "positions", "query_start", "block_table", "sample_rows")
_ADAPTERS = ("adapters", "row_adapters")


@dataclass
class _Side:
    """Where one of two steps that overlap has its inputs and its results.

    pinned: by the names of inputs and results. regions: the addresses of all regions, those two
    kinds on this side. chosen: the tokens that a step has said. done: the event behind its last
    step. open: is that still to be finished?
    """

    done: Any
    pinned: dict[str, NDArray[Any]] = field(default_factory=dict)
    regions: dict[str, int] = field(default_factory=dict)
    chosen: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    open: bool = False


@dataclass(frozen=True)
class _Ticket:
    """A step that was started: its side, the rows of logits that the host reads, does it choose?"""

    side: _Side
    rows: int
    chooses: bool


class CudaLibrary:
    """Runs the entries of `artifact` on the first GPU. `driver`: what stands for it in tests.

    capture: replay captured graphs, or launch kernel by kernel. overlaps: may a step be started
    while one runs? Memory is taken at the first step, when the buffers tell its sizes. Raises
    ArtifactError.
    """

    takes_largest = True
    draws = True

    def __init__(
        self, artifact: Artifact, driver: Driver | None = None, *, capture: bool = True,
        overlaps: bool = True,
    ) -> None:  # fmt: skip
        self.overlaps = overlaps
        self._driver = driver or Driver()
        self._program = Program.read(artifact, self._driver.capability())
        self._plan = Plan.from_json(artifact.json("plan.json"))
        self._inputs = (*_INPUTS, *_ADAPTERS) if self._plan.adapters else _INPUTS
        self._artifact = artifact
        self._capture = capture
        self._functions: dict[str, Any] = {}
        self._graphs: dict[tuple[str, int, Wanted, int], Any] = {}  # the last: of the side
        self._ran: set[tuple[str, int, Wanted]] = set()
        self._regions: dict[str, int] = {}  # but for those that sides have of their own
        self._sides = [_Side(self._driver.event()) for _ in range(2)]
        self._last = 0  # the side of the last step
        self._logits_address = 0  # of `_logits`, in pinned memory
        self._logits: NDArray[np.float32]
        self._buffers: StepBuffers | None = None
        for name, code in self._program.kernels.items():
            cubin = artifact.read(f"gpu/{self._program.chip}/{name}.cubin")
            self._functions[name] = self._driver.load(cubin, code.symbol, code.shared)

    @property
    def driver(self) -> Driver:
        """The GPU that it runs on."""
        return self._driver

    @property
    def program(self) -> Program:
        """The launches of its steps."""
        return self._program

    @property
    def chip(self) -> str:
        """The chip whose code runs."""
        return self._program.chip

    @property
    def regions(self) -> dict[str, int]:
        """Device addresses of the regions, once there was a step; `kv` that of block 0. Inputs and
        results are those of the last step.
        """
        return dict(self._sides[self._last].regions)

    def run(
        self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
    ) -> NDArray[np.int32] | None:
        """One step over the batch described in `buffers`; what is wanted of it is there on return:
        its logits in `buffers`, unless nobody reads those, and the tokens it has chosen.
        """
        return self.finish(self.start(entry, buffers, draws, logits))

    def start(
        self, entry: str, buffers: StepBuffers, draws: Sequence[Draw], logits: bool
    ) -> _Ticket:
        """As `run`, but it does not wait; `buffers` may describe another step from then on.

        Two steps may be open, if the host reads no logits of them. A token -1 - row is what the
        step in front chooses for its sampled `row`.
        """
        if self._buffers is None:
            self._place(buffers)
        assert buffers is self._buffers, "a library serves one set of buffers"
        tokens, sequences, blocks, rows = (int(each) for each in buffers.batch[:4])
        bucket = self._program.bucket(entry, tokens, rows)
        side = self._free_side()
        used = (8, tokens, tokens, sequences + 1, sequences * blocks, rows, tokens, rows)
        for name, count in zip(self._inputs, used, strict=False):
            side.pinned[name][:count] = getattr(buffers, name)[:count]
        for pool in range(1, len(self._plan.pools)):
            start = pool * int(buffers.batch[4])
            end = start + sequences * blocks
            side.pinned["block_table"][start:end] = buffers.block_table[start:end]
        wanted: Wanted = "largest" if draws else None
        if any(each is not LARGEST for each in draws):
            wanted = "drawn"
            side.pinned["draws"][:rows] = draws
        side.open = True
        self._start(entry, bucket, wanted)
        rows = rows if logits else 0
        if rows:
            direct = rows > len(self._logits)
            host = buffers.logits.ctypes.data if direct else self._logits_address
            self._driver.copy_out(host, self._regions["logits"], buffers.logits[:rows].nbytes)
        self._driver.mark(side.done)
        return _Ticket(side, rows, wanted is not None)

    def finish(self, ticket: _Ticket) -> NDArray[np.int32] | None:
        """Waits for a step, and not for one behind it; what is wanted of it is there on return, and
        stays until another step is started.
        """
        self._driver.wait_for(ticket.side.done)
        ticket.side.open = False
        if 0 < ticket.rows <= len(self._logits):
            assert self._buffers is not None
            self._buffers.logits[: ticket.rows] = self._logits[: ticket.rows]
        return ticket.side.chosen if ticket.chooses else None

    def _free_side(self) -> _Side:
        """The side for the next step: that of the last one, unless it is open."""
        if self._sides[self._last].open:
            self._last = 1 - self._last
        side = self._sides[self._last]
        if side.open:  # nobody will finish it: whoever started it was interrupted
            self._driver.wait()
        return side

    def copy_caches(self, target: int, source: int, size: int) -> None:
        """Copies bytes within the caches, counted from block 0, behind the steps that were started
        and in front of the next one."""
        caches = self._regions["kv"]
        self._driver.copy_within(caches + target, caches + source, size)

    def token_ids(self, tensor: Exporter) -> list[int]:
        """The numbers of an int32 or int64 tensor on the GPU. Raises RequestError."""
        return read_tensor(tensor, self._driver.read, self._driver.stream)

    def new_rows(self, rows: int, width: int) -> DeviceTensor:
        """Memory on the GPU for rows of logits."""
        address = self._driver.allocate(rows * width * 4)
        return DeviceTensor(address, (rows, width), self._driver.free)

    def keep_rows(self, target: DeviceTensor, first: int, rows: int) -> None:
        """Copies the last step's logits, so many rows, to row `first` of `target`."""
        width = target.shape[-1] * 4
        self._driver.copy_within(
            target.address + first * width, self._regions["logits"], rows * width
        )
        self._driver.wait()

    def _start(self, entry: str, bucket: Bucket, wanted: Wanted) -> None:
        """A step's launches: one by one the first time, which also loads their code, and later
        captured once on each side, as their addresses belong to the graph.
        """
        kind = (entry, bucket.tokens, wanted)
        if not self._capture or kind not in self._ran:
            self._launch(bucket, wanted)
            self._ran.add(kind)
            return
        key = (*kind, self._last)
        if key not in self._graphs:
            self._driver.capture()
            self._launch(bucket, wanted)
            self._graphs[key] = self._driver.captured()
        self._driver.replay(self._graphs[key])

    def _launch(self, bucket: Bucket, wanted: Wanted) -> None:
        launches = bucket.launches
        if wanted:
            launches += bucket.largest
        if wanted == "drawn":
            launches += bucket.drawn
        self.launch(launches)

    def launch(self, launches: Sequence[Launch]) -> None:
        """The launches of a step, or some of them, in the stream, on the side of the last one;
        memory is there once there was a step.

        The second one is launched as usual, so that all behind it find done what the first does,
        and may read a step's inputs before they wait.
        """
        regions = self._sides[self._last].regions
        for number, launch in enumerate(launches):
            code = self._program.kernels[launch.kernel]
            pointers = [regions[name] + offset for name, offset in launch.operands]
            pointers += [0] * code.scratch_pointers
            self._driver.launch(
                self._functions[launch.kernel], launch.grid, 32 * code.warps, code.shared, pointers,
                code.early and number != 1,
            )  # fmt: skip

    def _place(self, buffers: StepBuffers) -> None:
        """Takes all memory."""
        kept = buffers.logits[:_PINNED_ROWS]
        self._logits_address = self._driver.allocate_pinned(kept.nbytes)
        self._logits = _array(self._logits_address, kept.dtype, kept.shape)
        for name in (*self._inputs, "logits", "arena", "weights"):
            self._regions[name] = self._driver.allocate(getattr(buffers, name).nbytes)
        self._regions["chosen"] = self._driver.allocate(4 * len(buffers.logits))
        self._regions["draws"] = self._driver.allocate(8 * WORDS * len(buffers.logits))
        slots = (len(buffers.query_start) - 1) * self._plan.slot_bytes
        caches = self._driver.allocate(slots + buffers.kv.nbytes)
        self._driver.clear(caches, slots + buffers.kv.nbytes)
        self._regions["kv"] = caches + slots
        for pool in range(1, len(self._plan.pools)):
            pitch, place = int(buffers.batch[4]), int(buffers.batch[4 + pool])
            self._regions[f"block_table_{pool}"] = (
                self._regions["block_table"] + pool * pitch * buffers.block_table.itemsize
            )
            self._regions[f"kv_{pool}"] = self._regions["kv"] + place * POOL_UNIT
        self._regions["counters"] = self._driver.allocate(self._program.counter_bytes)
        self._driver.clear(self._regions["counters"], max(1, self._program.counter_bytes))
        for side in self._sides:
            self._place_side(side, buffers)
        self._upload(buffers.weights, self._regions["weights"])
        self._buffers = buffers

    def _place_side(self, side: _Side, buffers: StepBuffers) -> None:
        """Takes the pinned memory of a side; all other regions are there."""
        side.regions = dict(self._regions)
        for name in self._inputs:
            side.pinned[name], side.regions[f"host_{name}"] = self._share(getattr(buffers, name))
        rows = len(buffers.logits)
        draws = np.empty((rows, WORDS), np.int64)
        side.pinned["draws"], side.regions["host_draws"] = self._share(draws)
        side.chosen, side.regions["largest"] = self._share(np.empty(rows, np.int32))

    def _share(self, like: NDArray[Any]) -> tuple[NDArray[Any], int]:
        """Pinned memory of the host, and its address for kernels."""
        address = self._driver.allocate_pinned(like.nbytes)
        return _array(address, like.dtype, like.shape), self._driver.mapped(address)

    def _upload(self, weights: NDArray[np.uint8], device: int) -> None:
        """Through pinned buffers, which threads fill while one of them is copied."""
        begins = list(range(0, weights.nbytes, _STAGING))
        count = min(_LOADERS, len(begins))
        staging = [self._driver.allocate_pinned(_STAGING) for _ in range(count)]
        views = [_array(each, np.uint8, (_STAGING,)) for each in staging]

        def fill(number: int) -> int:
            part = weights[begins[number] : begins[number] + _STAGING]
            views[number % count][: len(part)] = part
            return len(part)

        with ThreadPoolExecutor(max(1, count)) as threads:
            filled = {number: threads.submit(fill, number) for number in range(count)}
            for number, begin in enumerate(begins):
                size = filled.pop(number).result()
                self._driver.copy_in(device + begin, staging[number % count], size)
                self._driver.wait()
                if number + count < len(begins):
                    filled[number + count] = threads.submit(fill, number + count)
        for each in staging:
            self._driver.free_pinned(each)


def _array(address: int, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """The host memory at `address` as an array."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory: Any = (ctypes.c_uint8 * size).from_address(address)
    return np.ndarray(shape, dtype, memory)
