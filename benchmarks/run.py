"""Side by side with other runtimes: the same shapes, threads and prompts, alternated in one run.

make bench                                      # everything; writes docs/performance.md
python benchmarks/run.py --quick                # about 3 minutes, docs left alone
python benchmarks/run.py --scenarios decode --shapes smollm2-135m --quants w8 --peers llama.cpp
python benchmarks/run.py --prepare              # only makes environments and model files
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alternation import Measurement
from compile_cost import compile_cost
from lineup import (
    CONTEXT_VARIANTS,
    OURS,
    PEER_KINDS,
    Contestant,
    among,
    contestants,
    our_contestant,
)
from models import MODELS, artifact, compile_ahead
from probe import Probe
from program import FULL_RUN, LARGEST, MAIN, PEERS, QUANTS, ROUNDS, SCENARIOS, scenarios_of
from report import full_report, write_documentation
from results import Results
from scenarios import LOADED, PROMPT, LongContext, Settings, first_token, load, long_context
from step_profile import step_profile

OUTPUT = Path(__file__).resolve().parent / "results"
LONG = 4096
COMPILED = "w4g32"
QUICK: dict[str, Any] = {
    "shapes": [LARGEST], "quants": ["w4g32", "w8"], "scenarios": ["decode", "prefill", "batch"],
    "peers": ["llama.cpp:Q4_0", "llama.cpp:Q8_0", "ort", "ctranslate2"], "rounds": 3,
}  # fmt: skip


def main() -> None:
    """Measures, prints the tables, writes the results."""
    arguments = _arguments()
    MODELS.mkdir(parents=True, exist_ok=True)
    variants = arguments.context_variants if _wants(arguments, "context") else []
    compile_ahead(_artifacts(arguments, variants), arguments.jobs)
    lineups = {
        shape: contestants(
            shape, QUANTS[shape] if arguments.quants is None else arguments.quants,
            PEERS[shape] if arguments.peers is None else arguments.peers, arguments.threads,
        )
        for shape in arguments.shapes
    }  # fmt: skip
    if arguments.prepare:
        return
    record = _Record(arguments)
    probe = Probe(arguments.threads)
    rounds = ROUNDS if arguments.rounds is None else dict.fromkeys(ROUNDS, arguments.rounds)
    settings = Settings(rounds, arguments.threads, tuple(arguments.prefill), probe)
    for shape, lineup in lineups.items():
        for part in _loaded(shape, lineup, arguments.scenarios, settings):
            record.add(part)
    if variants:
        for part in long_context(LARGEST, _subjects(variants, arguments.threads), settings):
            record.add(part)
    if _wants(arguments, "first-token"):
        for part in first_token(LARGEST, _starters(lineups[LARGEST]), settings):
            record.add(part)
    if _wants(arguments, "profile"):
        print(f"  profiling a step of {LARGEST}", file=sys.stderr)
        path = artifact(LARGEST, COMPILED, OURS[COMPILED].options)
        record.note("profile", step_profile(path, COMPILED, PROMPT, arguments.threads))
    if _wants(arguments, "compile"):
        print(f"  compiling {LARGEST}", file=sys.stderr)
        record.note("compile", compile_cost(LARGEST, arguments.compiled))
    print(f"{arguments.output}: {record.content['seconds']} s", file=sys.stderr)
    recorded = Results(arguments.output)
    print(full_report(recorded))
    if arguments.record:
        write_documentation(recorded)


def _wants(arguments: argparse.Namespace, scenario: str) -> bool:
    """Was a scenario that only the largest shape has asked for?"""
    chosen = SCENARIOS if arguments.scenarios is None else arguments.scenarios
    return LARGEST in arguments.shapes and scenario in chosen


def _artifacts(
    arguments: argparse.Namespace, variants: list[str]
) -> list[tuple[str, str, tuple[str, ...]]]:
    """Shape, name and options of all of ours that the run needs."""
    wanted = [
        (shape, name)
        for shape in arguments.shapes
        for name in (QUANTS[shape] if arguments.quants is None else arguments.quants)
    ]
    wanted += [(LARGEST, name) for name in variants]
    if _wants(arguments, "profile"):
        wanted.append((LARGEST, COMPILED))
    return [(shape, name, OURS[name].options) for shape, name in dict.fromkeys(wanted)]


class _Record:
    """The results so far, written after every measurement: what ended a long run took nothing.

    With --append those of an earlier run stay, but for what is measured again.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._output: Path = arguments.output
        self._start = time.time()
        command = " ".join(["python", "benchmarks/run.py", *sys.argv[1:]])
        self.content: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"), "seconds": 0, "machine": _machine(),
            "command": command, "threads": arguments.threads, "measurements": [], "compile": None,
            "profile": None,
        }  # fmt: skip
        if arguments.append:
            before = json.loads(self._output.read_text())
            if before["machine"] != self.content["machine"]:
                raise SystemExit(f"{self._output} was measured on another machine.")
            self.content.update(
                measurements=before["measurements"], compile=before["compile"],
                profile=before.get("profile"), command=f"{before['command']}; {command}",
            )  # fmt: skip
            self._start -= before["seconds"]
        self._before = len(self.content["measurements"])

    def add(self, measurement: Measurement) -> None:
        """One more, in place of an earlier run's of the same runtimes."""
        new = asdict(measurement)
        keys = ("scenario", "shape", "parameters")
        old = self.content["measurements"][: self._before]
        kept = [
            each for each in old
            if any(each[key] != new[key] for key in keys)
            or not set(each["series"]) & set(new["series"])
        ]  # fmt: skip
        self.content["measurements"][: self._before] = kept
        self._before = len(kept)
        self.content["measurements"].append(new)
        self._write()

    def note(self, name: str, found: dict[str, Any]) -> None:
        """What is no comparison: ``compile`` or ``profile``."""
        self.content[name] = found
        self._write()

    def _write(self) -> None:
        self.content["seconds"] = round(time.time() - self._start)
        self._output.parent.mkdir(exist_ok=True)
        self._output.write_text(json.dumps(_rounded(self.content), indent=1) + "\n")


def _loaded(
    shape: str, lineup: list[Contestant], scenarios: list[str] | None, settings: Settings
) -> Iterator[Measurement]:
    """The scenarios with loaded models, group by group: what is compared is loaded together."""
    for most, least in ((8, 1), (16, 9), (32, 17)):
        names = scenarios_of(shape, most) if scenarios is None else scenarios
        chosen = [LOADED[name] for name in LOADED if name in names]
        group = [each for each in lineup if least <= each.bits <= most]
        if group and chosen:
            print(f"{shape}: {', '.join(each.title for each in group)}", file=sys.stderr)
            missing: list[str] = []
            with load(group, missing) as workers:
                for scenario in chosen:
                    for part in scenario(shape, workers, settings):
                        part.notes += missing
                        yield part


def _subjects(variants: list[str], threads: int) -> list[LongContext]:
    """Each variant at PROMPT and at LONG tokens."""
    found = []
    for name in variants:
        path = artifact(LARGEST, name, OURS[name].options)
        for position in (PROMPT, LONG):
            each = our_contestant(LARGEST, OURS[name], threads, context=LONG + 512, sequences=1)
            more = _kv_bytes_per_token(path) * (position - PROMPT)
            found.append(LongContext(each, position, more))
    return found


def _kv_bytes_per_token(path: Path) -> int:
    from graphwright.runtime.artifact import Artifact

    kv = Artifact.open(path).json("plan.json")["kv"]
    return int(kv["block_bytes"]) // int(kv["block_size"])


def _starters(lineup: list[Contestant]) -> list[Contestant]:
    """Who is compared from process start: ours and llama.cpp, at 8 bits and less."""
    of_both = [each for each in lineup if each.ours or each.peer == "llama.cpp"]
    return among(MAIN, [each for each in of_both if each.bits <= 8])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=list(QUANTS), default=FULL_RUN,
                        help=f"default: {FULL_RUN}")  # fmt: skip
    parser.add_argument("--quants", nargs="*", choices=list(OURS),
                        help=f"default: {QUANTS}")  # fmt: skip
    parser.add_argument("--context-variants", nargs="*", choices=list(OURS),
                        default=list(CONTEXT_VARIANTS))  # fmt: skip
    parser.add_argument("--peers", nargs="*", metavar="PEER[:FORMAT]",
                        help=f"default: {PEERS}")  # fmt: skip
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS,
                        help="default: all, where program.py has them")  # fmt: skip
    parser.add_argument("--compiled", default=COMPILED, help="what the compile scenario makes")
    parser.add_argument("--prefill", nargs="+", type=int, default=[512])
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--jobs", type=int, default=2, help="artifacts compiled at a time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help=f"defaults for a short run: {QUICK}")
    parser.add_argument("--prepare", action="store_true", help="make files only")
    parser.add_argument("--record", action="store_true", help="write docs/performance.md too")
    parser.add_argument("--append", action="store_true", help="add to the output of an earlier run")
    parser.add_argument("--output", type=Path, help="default: results/latest.json, or DATE.json "
                        "with --record")  # fmt: skip
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    arguments = parser.parse_args()
    known = {each.peer for each in PEER_KINDS} | {f"{e.peer}:{e.kind}" for e in PEER_KINDS}
    if wrong := sorted(set(arguments.peers or ()) - known):
        parser.error(f"there is no peer {', '.join(wrong)}; there are {', '.join(sorted(known))}")
    name = time.strftime("%Y-%m-%d") if arguments.record else "latest"
    arguments.output = arguments.output or OUTPUT / f"{name}.json"
    return arguments


def _machine() -> str:
    """CPU, its vector instructions, threads, memory, kernel."""
    info = Path("/proc/cpuinfo").read_text()
    name = next((line.split(":")[1].strip() for line in info.splitlines()
                 if line.startswith("model name")), platform.processor())  # fmt: skip
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "").split()
    vectors = [
        flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{name} ({' '.join(vectors)}), {os.cpu_count()} threads, {memory:.0f} GB"


def _rounded(value: Any) -> Any:
    """Floats with 5 significant digits: a file that people can read."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return value


if __name__ == "__main__":
    main()
