"""Would a step be faster if weights were read into the L2 cache while memory is idle?

    python benchmarks/gpu/ahead.py ARTIFACT...        # with weights: those that run.py leaves

Attention of one sequence waits for loads of few bytes. Beside it a branch of the captured graph can
read the weights of the product that comes next. This measures whole steps, with and without such
branches, alternated: how many bytes of each product, how many in flight, and from which launch on.
An experiment: artifacts do not read ahead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from read_ahead import DUMP_BYTES, read_ahead

from graphwright.backends.triton.chips import chips_of
from graphwright.backends.triton.cubin import Cubin, compile_cubin
from graphwright.runtime.artifact import Artifact
from graphwright.runtime.cuda.driver import Driver
from graphwright.runtime.cuda.library import CudaLibrary
from graphwright.runtime.cuda.program import Launch
from graphwright.runtime.engine import Engine

__all__ = ["Ahead", "BranchingDriver", "ahead_of", "main", "replays"]

ROUNDS = 9
LEAST_BYTES = 1 << 20  # of a product that is worth it


@dataclass(frozen=True)
class Ahead:
    """One experiment: from launches of which name on, at most so many bytes of the next product."""

    before: str
    most: int
    programs: int
    deep: int


class BranchingDriver(Driver):
    """A driver whose captures can have a second branch, joined when the capture ends."""

    def __init__(self, api: Any = None) -> None:
        super().__init__(api)
        self._side = self._call("cuStreamCreate", 1)
        self._events = [self._call("cuEventCreate", 2) for _ in range(2)]  # without times
        self._branched = False

    @contextmanager
    def branch(self) -> Iterator[None]:
        """What is launched inside comes after all before, and before nothing but the end."""
        self._follow(self._side, self._stream, self._events[0])
        main, self._stream, self._branched = self._stream, self._side, True
        try:
            yield
        finally:
            self._stream = main

    def captured(self) -> Any:
        if self._branched:
            self._follow(self._stream, self._side, self._events[1])
            self._branched = False
        return super().captured()

    def _follow(self, stream: Any, other: Any, event: Any) -> None:
        self._call("cuEventRecord", event, other)
        self._call("cuStreamWaitEvent", stream, event, 0)


def ahead_of(
    launches: Sequence[Launch], sizes: Mapping[int, int], what: Ahead
) -> dict[int, tuple[int, int]]:
    """By the number of a launch, (offset, bytes) in the region of weights to read beside it.

    sizes: bytes of the blob that begins at an offset.
    """
    found: dict[int, tuple[int, int]] = {}
    for number, launch in enumerate(launches):
        if not launch.kernel.startswith(what.before):
            continue
        for later in launches[number + 1 :]:
            offsets = [offset for region, offset in later.operands if region == "weights"]
            largest = max(offsets, key=lambda offset: sizes.get(offset, 0), default=None)
            if largest is not None and sizes.get(largest, 0) >= LEAST_BYTES:
                found[number] = (largest, min(what.most, sizes[largest]) // 4 * 4)
                break
    return found


@cache
def compiled(chip: str, size: int, programs: int, deep: int) -> Cubin:
    """The kernel that reads so many bytes."""
    kernel = read_ahead(size, programs, deep)
    return compile_cubin(kernel, chips_of(f"cuda:{chip}")[0], frozenset({"weight", "dump"}))


def captured(driver: Driver, library: CudaLibrary, launches: Sequence[Launch]) -> Any:
    """The graph of a step that reads nothing ahead."""
    driver.capture()
    library.launch(launches)
    return driver.captured()


def replays(
    driver: BranchingDriver, library: CudaLibrary, launches: Sequence[Launch],
    sizes: Mapping[int, int], what: Ahead, dump: int,
) -> Any:  # fmt: skip
    """The graph of a step."""
    beside = ahead_of(launches, sizes, what)
    functions = {}
    for size in {size for _, size in beside.values()}:
        code = compiled(library.chip, size, what.programs, what.deep)
        functions[size] = (code, driver.load(code.code, code.symbol, code.shared))
    driver.capture()
    for number, launch in enumerate(launches):
        if number in beside:
            offset, size = beside[number]
            code, function = functions[size]
            pointers = [library.regions["weights"] + offset, dump, *[0] * code.scratch_pointers]
            with driver.branch():
                driver.launch(
                    function, (what.programs, 1, 1), 32 * code.warps, code.shared, pointers
                )
        library.launch([launch])
    return driver.captured()


def experiments(launches: Sequence[Launch], programs: int) -> list[Ahead]:
    """From rotations on, where those are launches of their own, and from attentions on;
    `programs`: one for each multiprocessor.
    """
    return [
        Ahead(before, size << 20, programs, deep)
        for before in ("rope_append", "decode_attention")
        if any(launch.kernel.startswith(before) for launch in launches)
        for size in (4, 8, 16, 32)
        for deep in (2, 4, 8)
    ]


def measure(path: Path) -> list[dict[str, Any]]:
    """A row for each experiment: µs of a step with and without it, as medians of alternations."""
    from measure import decode_seconds

    artifact = Artifact.open(path, verify=False)
    driver = BranchingDriver()
    library = CudaLibrary(artifact, driver)
    engine = Engine(artifact, library=library, max_sequences=1, context=2048)
    decode_seconds(engine, 1, 1024)  # what the launches below work on
    bucket = library.program.bucket("decode", 1, 1)
    launches = (*bucket.launches, *bucket.largest)
    entries = artifact.json("plan.json")["weights"]["entries"]
    sizes = {int(each["offset"]): int(each["bytes"]) for each in entries}
    dump = driver.allocate(DUMP_BYTES)
    plain = captured(driver, library, launches)
    rows = []
    for what in experiments(launches, chips_of(f"cuda:{library.chip}")[0].multiprocessors):
        graph = replays(driver, library, launches, sizes, what, dump)
        taken: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(ROUNDS):
            for ahead, each in ((False, plain), (True, graph)):
                taken[ahead].append(driver.seconds(lambda each=each: driver.replay(each)))
        without, together = (1e6 * statistics.median(taken[key]) for key in (False, True))
        rows.append(
            {"artifact": path.name, "before": what.before, "MB": what.most >> 20, "deep": what.deep,
             "us without": without, "us": together, "ratio": without / together}
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    for name in ("arena", "weights", "kv", "logits"):
        driver.free(library.regions[name])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="JSON of every figure")
    options = parser.parse_args()
    rows = [row for path in options.artifacts for row in measure(path)]
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
