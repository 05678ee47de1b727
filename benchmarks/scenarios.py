"""What is measured, scenario by scenario. Each gives Measurements; tables are made elsewhere."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from alternation import Measurement, alternate
from lineup import Contestant, among
from probe import Probe
from program import LARGEST, MAIN
from worker_process import Worker, WorkerEnded, first_token_seconds

__all__ = ["LOADED", "PROMPT", "LongContext", "Settings", "first_token", "load", "long_context"]

PROMPT = 128
TOKENS = {"tinyllama-1.1b": 16, "smollm2-135m": 64, "stories15m": 256, "mamba-790m": 16,
          "qwen3.5-0.8b": 16}  # decoded a measurement  # fmt: skip
SEQUENCES = 8
LONGEST = 16.0  # seconds: a prefill that takes longer is left out
RESERVE_MB = 1500  # memory that stays free, so that mapped weights are not read from disk again
Runs = dict[str, tuple[dict[str, Any], Callable[[], float]]]


@dataclass(frozen=True)
class Settings:
    """How much is measured. rounds: of each scenario."""

    rounds: dict[str, int]
    threads: int
    prefill_lengths: tuple[int, ...]
    probe: Probe


@contextmanager
def load(contestants: Sequence[Contestant], missing: list[str]) -> Iterator[list[Worker]]:
    """Starts all of them, warms them up, and ends them afterwards.

    A peer that does not start is added to `missing`, as a sentence; the others are measured.
    Raises SystemExit when one of ours does not start, or when little memory is left: mapped files
    would be dropped and read again.
    """
    workers: list[Worker] = []
    try:
        for each in contestants:
            print(f"  loading {each.title}", file=sys.stderr)
            try:
                worker = Worker(each)
                worker.ask(op="decode", prompt=PROMPT, tokens=2)
            except (WorkerEnded, BrokenPipeError) as error:
                if each.ours:
                    raise SystemExit(str(error)) from error
                missing.append(f"{each.title} did not start")
                print(f"  {error}", file=sys.stderr)
                continue
            workers.append(worker)
        free = _available_mb()
        if free < RESERVE_MB:
            raise SystemExit(f"{len(workers)} runtimes leave {free} MB of memory: load fewer.")
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def decode(shape: str, workers: list[Worker], settings: Settings) -> Iterator[Measurement]:
    """One sequence."""
    tokens = TOKENS[shape]
    runs: Runs = {
        w.contestant.title: (_facts(w), _asking(w, op="decode", prompt=PROMPT, tokens=tokens))
        for w in workers
    }
    found = Measurement("decode", shape, {"prompt": PROMPT, "tokens": tokens})
    yield _finish(alternate(found, runs, settings.rounds["decode"], settings.probe), workers)


def prefill(shape: str, workers: list[Worker], settings: Settings) -> Iterator[Measurement]:
    """One prompt of each length; who would take longer than LONGEST is left out, and named.

    A decode step that is compiled says nothing about prefill, which runs eagerly there.
    """
    for length in settings.prefill_lengths:
        found = Measurement("prefill", shape, {"prompt": length})
        runs: Runs = {}
        for worker in workers:
            title = worker.contestant.title
            if worker.contestant.kind.startswith("compile"):
                continue
            seconds = length / worker.ask(op="prefill", prompt=PROMPT)
            if seconds > LONGEST:
                found.notes.append(f"{title} was left out: it takes about {seconds:.0f} s")
            else:
                runs[title] = (_facts(worker), _asking(worker, op="prefill", prompt=length))
        if runs:
            yield alternate(found, runs, settings.rounds["prefill"], settings.probe)


def batch(shape: str, workers: list[Worker], settings: Settings) -> Iterator[Measurement]:
    """SEQUENCES at once, beside our own single sequence."""
    tokens = max(8, TOKENS[shape] // SEQUENCES)
    runs: Runs = {}
    chosen = [worker for worker in workers if worker.contestant.batches]
    takes_part = among(MAIN, [worker.contestant for worker in chosen])
    chosen = [worker for worker in chosen if worker.contestant in takes_part]
    for worker in chosen:
        title, facts = worker.contestant.title, _facts(worker)
        runs[title] = (facts, _asking(worker, op="batch", sequences=SEQUENCES, prompt=PROMPT,
                                      tokens=tokens))  # fmt: skip
    # One sequence again, from other processes: switching would read the prompts again.
    singles = [Worker(w.contestant) for w in chosen if w.contestant.ours]
    try:
        for worker in singles:
            run = _asking(worker, op="decode", prompt=PROMPT, tokens=TOKENS[shape])
            runs[f"{worker.contestant.title}, one sequence"] = (
                {**_facts(worker), "single": worker.contestant.title}, run
            )  # fmt: skip
        for _, run in runs.values():
            run()
        found = Measurement("batch", shape, {"sequences": SEQUENCES, "prompt": PROMPT,
                                             "tokens": tokens})  # fmt: skip
        yield alternate(found, runs, settings.rounds["batch"], settings.probe)
    finally:
        for worker in singles:
            worker.stop()


def contention(shape: str, workers: list[Worker], settings: Settings) -> Iterator[Measurement]:
    """Decoding, in turn undisturbed and beside one process that computes all the time."""
    takes_part = among(MAIN, [worker.contestant for worker in workers])
    chosen = [worker for worker in workers if worker.contestant in takes_part]
    if shape != LARGEST or not chosen:
        return
    runs: Runs = {}
    for worker in chosen:
        title, facts = worker.contestant.title, _facts(worker)
        run = _asking(worker, op="decode", prompt=PROMPT, tokens=TOKENS[shape] // 2)
        run()
        runs[f"{title}, undisturbed"] = ({**facts, "of": title}, run)
        runs[f"{title}, disturbed"] = ({**facts, "of": title, "disturbed": True}, _disturbed(run))
    found = Measurement("contention", shape, {"prompt": PROMPT, "tokens": TOKENS[shape] // 2})
    yield alternate(found, runs, settings.rounds["contention"], settings.probe)


LOADED: dict[str, Callable[[str, list[Worker], Settings], Iterator[Measurement]]] = {
    "decode": decode,
    "prefill": prefill,
    "batch": batch,
    "contention": contention,
}


@dataclass(frozen=True)
class LongContext:
    """An artifact, a position, and the bytes of keys and values that decoding there reads more than
    at PROMPT."""

    contestant: Contestant
    position: int
    more_kv_bytes: int = field(default=0)


def long_context(
    shape: str, subjects: Sequence[LongContext], settings: Settings
) -> Iterator[Measurement]:
    """Decoding at each position, each in a process of its own: to switch is to read again."""
    tokens = TOKENS[shape]
    found = Measurement("context", shape, {"tokens": tokens})
    runs: Runs = {}
    workers = [Worker(each.contestant) for each in subjects]
    try:
        for worker, subject in zip(workers, subjects, strict=True):
            facts = {**_facts(worker), "of": subject.contestant.title,
                     "position": subject.position, "kv_bytes": subject.more_kv_bytes}  # fmt: skip
            run = _asking(worker, op="decode", prompt=subject.position, tokens=tokens)
            run()
            runs[f"{subject.contestant.title} at {subject.position}"] = (facts, run)
        yield alternate(found, runs, settings.rounds["context"], settings.probe)
    finally:
        for worker in workers:
            worker.stop()


def first_token(
    shape: str, contestants: Sequence[Contestant], settings: Settings
) -> Iterator[Measurement]:
    """Seconds from the start of a process to the first token of PROMPT token ids, files cached."""
    found = Measurement("first-token", shape, {"prompt": PROMPT, "unit": "s"})
    runs: Runs = {}
    for each in contestants:
        imports: list[float] = []

        def run(each: Contestant = each, imports: list[float] = imports) -> float:
            seconds, before = first_token_seconds(each, PROMPT)
            imports.append(before)
            return seconds

        run()
        imports.clear()
        runs[each.title] = ({"ours": each.ours, "bits": each.bits, "imports_s": imports}, run)
    yield alternate(found, runs, settings.rounds["first-token"], settings.probe)


def _facts(worker: Worker) -> dict[str, Any]:
    each, hello = worker.contestant, worker.hello
    return {
        "ours": each.ours, "bits": each.bits, "peer": each.peer, "kind": each.kind,
        "version": hello["version"], "weight_bytes": hello["weight_bytes"],
        "load_s": hello["load_s"],
    }  # fmt: skip


def _asking(worker: Worker, **command: Any) -> Callable[[], float]:
    return lambda: worker.ask(**command)


def _finish(measurement: Measurement, workers: list[Worker]) -> Measurement:
    for worker in workers:
        facts = measurement.series[worker.contestant.title].facts
        facts["peak_rss_mb"] = worker.peak_rss_mb
    return measurement


def _disturbed(run: Callable[[], float]) -> Callable[[], float]:
    """`run` beside a process that computes all the time and is pinned nowhere."""

    def disturbed() -> float:
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            time.sleep(0.2)
            return run()
        finally:
            busy.kill()
            busy.wait()

    return disturbed


def _available_mb() -> int:
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) // 1024 for line in lines if "MemAvailable" in line)
