"""The backend of torch.compile beside eager and Inductor: the same model, alternated in one run.

    python benchmarks/torch_compile.py --shape tinyllama-1.1b --rounds 4

Each runs in a process of its own: transformers' forward, one sequence, greedy. Inductor has a
static cache for decoding too, which suits it best. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from alternation import Measurement, alternate
from lineup import Contestant
from models import peer_model
from probe import Probe
from worker_process import Worker

TITLES = {
    "eager": "eager",
    "inductor": "Inductor",
    "compile": "Inductor, static cache",
    "graphwright:auto": "graphwright",
    "graphwright:w8": "graphwright w8",
    "graphwright:w4g128": "graphwright w4g128",
}
AGAINST = ("eager", "inductor", "compile")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="tinyllama-1.1b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--modes", nargs="+", default=list(TITLES), choices=list(TITLES))
    given = parser.parse_args()
    workers: dict[str, Worker] = {}
    try:
        for mode in given.modes:
            print(f"  loading {TITLES[mode]}", file=sys.stderr)
            workers[mode] = Worker(_contestant(mode, given))
        probe = Probe(given.threads)
        decode = _measure("decode", workers, given.rounds, probe, given.shape,
                          op="decode", prompt=128, tokens=given.tokens)  # fmt: skip
        several = {mode: each for mode, each in workers.items() if mode != "compile"}
        prefill = _measure("prefill", several, given.rounds, probe, given.shape,
                           op="prefill", prompt=given.prompt)  # fmt: skip
        _print(given, workers, decode, prefill)
    finally:
        for worker in workers.values():
            worker.stop()


def _contestant(mode: str, given: argparse.Namespace) -> Contestant:
    directory = peer_model("transformers", given.shape, "eager-f32")
    command = (sys.executable, "transformers_worker.py", str(directory), str(given.threads), mode,
               given.dtype)  # fmt: skip
    return Contestant(TITLES[mode], None, mode, 0, command)


def _measure(
    name: str, workers: dict[str, Worker], rounds: int, probe: Probe, shape: str, **command: Any
) -> Measurement:
    runs: dict[str, tuple[dict[str, Any], Callable[[], float]]] = {}
    for mode, worker in workers.items():
        worker.ask(**command)
        runs[mode] = ({}, partial(worker.ask, **command))
    return alternate(Measurement(name, shape, command), runs, rounds, probe)


def _print(
    given: argparse.Namespace, workers: dict[str, Worker], decode: Measurement, prefill: Measurement
) -> None:
    probes = [rate for series in decode.series.values() for rate in series.probes]
    print(f"{given.shape}, {given.dtype}, {given.threads} threads; the probe read "
          f"{statistics.median(probes):.0f} GB/s.\n")  # fmt: skip
    others = [mode for mode in AGAINST if mode in workers]
    columns = ["decode tok/s", *(f"× {TITLES[each]}" for each in others)]
    columns += [f"prefill {given.prompt} tok/s", "ready after s", "MB"]
    print("| | " + " | ".join(columns) + " |")
    print("|" + "---|" * (len(columns) + 1))
    for mode, worker in workers.items():
        cells = [f"{statistics.median(decode.series[mode].values):.1f}"]
        cells += [f"{_ratio(decode, mode, other):.2f}" for other in others]
        series = prefill.series.get(mode)
        cells.append(f"{statistics.median(series.values):.0f}" if series else "")
        cells += [f"{worker.hello['load_s']:.0f}", str(worker.peak_rss_mb)]
        print(f"| {TITLES[mode]} | " + " | ".join(cells) + " |")


def _ratio(found: Measurement, mode: str, other: str) -> float:
    pairs = zip(found.series[mode].values, found.series[other].values, strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


if __name__ == "__main__":
    main()
