"""Would a step be faster if launches began before those in front of them have ended?

    python benchmarks/gpu/dependent.py code SHAPE QUANT FOLDER       # any machine: two skeletons
    python benchmarks/gpu/dependent.py measure ARTIFACT --code FOLDER/SHAPE-QUANT-*.gw      # GPU

From one launch to the next a captured graph takes about a microsecond. A launch that may begin
early is there when the one in front ends, and has loaded its first weights. The code is that of the
artifact with waits (waits.py): `ended` lets a launch begin when all programs in front of it have
ended, `begun` when they have waited themselves. This measures whole steps of one sequence, with
usual launches and with early ones, alternated, and sees that the logits are the same to the bit. An
experiment: artifacts have no waits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahead import captured
from skeleton import skeleton
from waits import waiting_cubins

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.cuda.driver import Driver
from graphwright.runtime.cuda.library import CudaLibrary
from graphwright.runtime.cuda.program import Launch
from graphwright.runtime.engine import Engine

__all__ = ["KINDS", "EarlyDriver", "in_order", "load_code", "main"]

ROUNDS = 15
CONTEXT = 2048
KINDS = {"ended": False, "begun": True}  # when the launch behind may begin


class EarlyDriver(Driver):
    """A driver whose launches may, while `early`, begin before those in front have ended."""

    early = False

    def _start(
        self, function: Any, grid: Sequence[int], threads: int, shared: int, parameters: int
    ) -> None:
        if not self.early:
            super()._start(function, grid, threads, shared, parameters)
            return
        api = self._api
        attribute = api.CUlaunchAttribute()
        kinds = api.CUlaunchAttributeID
        attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config = api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes, config.hStream = shared, self._stream
        config.attrs, config.numAttrs = [attribute], 1
        self._call("cuLaunchKernelEx", config, function, parameters, 0)


def load_code(library: CudaLibrary, driver: Driver, path: Path) -> None:
    """From now on the library runs the code of another artifact of the same launches."""
    other = Artifact.open(path, verify=False)
    for name, code in library.program.kernels.items():
        cubin = other.read(f"gpu/{library.chip}/{name}.cubin")
        library._functions[name] = driver.load(cubin, code.symbol, code.shared)


def in_order(launches: Sequence[Launch]) -> list[Launch]:
    """With the places in the cache right behind the inputs: waits.py counts on it."""
    first, *rest = launches
    return [first, *sorted(rest, key=lambda each: not each.kernel.startswith("token_slots"))]


def measure(path: Path, codes: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each code: µs of a step, medians of alternations, and whether logits are equal."""
    from measure import decode_seconds

    driver = EarlyDriver()
    artifact = Artifact.open(path, verify=False)
    library = CudaLibrary(artifact, driver, overlaps=False)  # the last token is known
    engine = Engine(artifact, library=library, max_sequences=1, context=CONTEXT)
    decode_seconds(engine, 1, CONTEXT // 2)  # what the launches below work on
    bucket = library.program.bucket("decode", 1, 1)
    launches = in_order((*bucket.launches, *bucket.largest))
    size = 4 * int(artifact.json("plan.json")["vocab_size"])
    graphs = {"usual": captured(driver, library, launches)}
    for code in codes:
        load_code(library, driver, code)
        graphs[f"{code.stem}, not early"] = captured(driver, library, launches)
        driver.early = True
        graphs[code.stem] = captured(driver, library, launches)
        driver.early = False
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    logits: dict[str, set[bytes]] = {name: set() for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            taken[name].append(driver.seconds(lambda graph=graph: driver.replay(graph)))
            logits[name].add(driver.read(library.regions["logits"], size))
    usual = 1e6 * statistics.median(taken["usual"])
    rows = []
    for name, seconds in taken.items():
        found = 1e6 * statistics.median(seconds)
        rows.append(
            {"artifact": path.name, "code": name, "us": found, "ratio": usual / found,
             "equal": logits[name] == logits["usual"] and len(logits[name]) == 1}
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def code(shape: str, quant: str, folder: Path) -> None:
    """FOLDER/SHAPE-QUANT-KIND.gw, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, trigger in KINDS.items():
        with tempfile.TemporaryDirectory() as cache, waiting_cubins(trigger):
            os.environ["TRITON_CACHE_DIR"] = cache  # its keys know nothing of waits
            made = skeleton(shape, quant, folder)
        print(made.rename(folder / f"{shape}-{quant}-{kind}.gw"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("code")
    making.add_argument("shape")
    making.add_argument("quant")
    making.add_argument("folder", type=Path)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("artifact", type=Path)
    measuring.add_argument("--code", nargs="+", type=Path, required=True)
    measuring.add_argument("--output", type=Path, help="JSON of every figure")
    options = parser.parse_args()
    if options.verb == "code":
        code(options.shape, options.quant, options.folder)
        return 0
    rows = measure(options.artifact, options.code)
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
