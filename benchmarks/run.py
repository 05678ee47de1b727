"""Side by side with other runtimes: the same shape, threads and prompt, alternated in one run.

    make bench                                   # everything below, tables on stdout
    python benchmarks/run.py --shape tinyllama-1.1b --rounds 5 --peers eager compile llama.cpp

Machines are shared and their memory bandwidth swings within minutes. So every round measures each
runtime once, one after the other, with a read probe in between, and what is reported are medians,
bests and the ratios of bests and of medians within this run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from make_checkpoint import make_checkpoint  # noqa: E402
from probe import Probe  # noqa: E402

MODELS = Path(os.environ.get("GRAPHWRIGHT_BENCH_MODELS", HERE / "models"))
PEER_PYTHON = Path(os.environ.get("GRAPHWRIGHT_PEER_PYTHON", HERE / ".venv-peers/bin/python"))
PEER_PACKAGES = ("llama-cpp-python", "gguf", "numpy")


@dataclass
class Runtime:
    """One worker process, and what it measured."""

    name: str
    bits: str
    command: list[str]
    process: subprocess.Popen[str] | None = None
    hello: dict[str, Any] = field(default_factory=dict)
    decode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    peak_rss_mb: int = 0

    def start(self) -> None:
        """Starts the process and waits until its model is loaded."""
        self.process = subprocess.Popen(
            self.command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            cwd=HERE / "workers",
        )  # fmt: skip
        self.hello = self._answer()

    def ask(self, **command: Any) -> float:
        """One measurement: tokens per second."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.peak_rss_mb = answer["peak_rss_mb"]
        return float(answer["tps"])

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker of '{self.name}' ended: {' '.join(self.command)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def peer_python() -> Path:
    """The environment of the peers that are not PyTorch, made when it is not there."""
    if not PEER_PYTHON.is_file():
        folder = PEER_PYTHON.parents[1]
        print(f"installing {', '.join(PEER_PACKAGES)} into {folder} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([PEER_PYTHON, "-m", "pip", "install", "-q", *PEER_PACKAGES], check=True)
    return PEER_PYTHON


def artifact(shape: str, quant: str) -> Path:
    """Our artifact of the shape, compiled when it is not there or older than the sources."""
    path = MODELS / f"{shape}-{quant}.gw"
    rooms = ("frontend", "ir", "passes", "backends", "runtime", "graphwright")
    sources = [file for room in rooms for file in (HERE.parent / room).rglob("*.py")]
    newest = max(file.stat().st_mtime for file in sources)
    if not path.is_file() or path.stat().st_mtime < newest:
        checkpoint = make_checkpoint(shape, MODELS / shape)
        command = ["-m", "graphwright", "compile", checkpoint, "--quant", quant, "-o", path]
        subprocess.run([sys.executable, *map(str, command)], check=True, stdout=sys.stderr)
    return path


def runtimes(shape: str, peers: list[str], quants: list[str], threads: int) -> list[Runtime]:
    """Ours first, then the peers asked for."""
    checkpoint = make_checkpoint(shape, MODELS / shape)
    here = sys.executable
    found = [
        Runtime(f"graphwright {q}", q,
                [here, "graphwright_worker.py", str(artifact(shape, q)), str(threads)])
        for q in quants
    ]  # fmt: skip
    for mode in ("eager", "compile"):
        if mode in peers:
            command = [here, "transformers_worker.py", str(checkpoint), str(threads), mode]
            found.append(Runtime(f"transformers {mode} f32", "f32", command))
    if "llama.cpp" in peers:
        python = str(peer_python())
        for kind in ("Q8_0",):
            command = [python, str(HERE / "make_gguf.py"), shape, str(MODELS), kind]
            made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE)
            gguf = made.stdout.split()[-1]
            command = [python, "llama_cpp_worker.py", gguf, str(threads)]
            found.append(Runtime(f"llama.cpp {kind}", "w8", command))
    return found


def measure(
    found: list[Runtime], rounds: int, prompt: int, tokens: int, threads: int
) -> list[float]:
    """Alternates the runtimes; returns what the probe read, one figure before each measurement."""
    probe, reads = Probe(threads), []
    for number in range(rounds):
        for runtime in found:
            reads.append(probe.measure())
            runtime.decode.append(runtime.ask(op="decode", prompt=prompt, tokens=tokens))
            runtime.prefill.append(runtime.ask(op="prefill", prompt=prompt))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    probe.close()
    return reads


def table(found: list[Runtime], reads: list[float]) -> str:
    """Markdown: medians and bests, and our ratio to each peer of the same bits."""
    lines = [
        "| runtime | decode tok/s median / best | prefill tok/s median | load s | peak RSS MB |",
        "|---|---|---|---|---|",
    ]
    for r in found:
        lines.append(
            f"| {r.name} | {statistics.median(r.decode):.2f} / {max(r.decode):.2f} | "
            f"{statistics.median(r.prefill):.1f} | {r.hello['load_s']:.2f} | {r.peak_rss_mb} |"
        )
    lines += ["", "| ratio of decode speeds | medians | bests |", "|---|---|---|"]
    for ours in (r for r in found if r.name.startswith("graphwright")):
        for peer in (r for r in found if r.bits == ours.bits and r is not ours):
            middle = statistics.median(ours.decode) / statistics.median(peer.decode)
            best = max(ours.decode) / max(peer.decode)
            lines.append(f"| {ours.name} : {peer.name} | {middle:.2f} | {best:.2f} |")
    lines += ["", f"read probe: median {statistics.median(reads):.1f} GB/s, best {max(reads):.1f}"]
    return "\n".join(lines)


def machine() -> str:
    """The CPU's name and its number of threads."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} threads"
    return platform.processor()


def main() -> None:
    """Measures and prints; writes results/SHAPE.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--shape", default="tinyllama-1.1b")
    parser.add_argument("--peers", nargs="*", default=["eager", "compile", "llama.cpp"])
    parser.add_argument("--quants", nargs="*", default=["f32", "w8"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=16)
    arguments = parser.parse_args()
    MODELS.mkdir(parents=True, exist_ok=True)
    found = runtimes(arguments.shape, arguments.peers, arguments.quants, arguments.threads)
    try:
        for runtime in found:
            print(f"loading {runtime.name} …", file=sys.stderr)
            runtime.start()
        reads = measure(found, arguments.rounds, arguments.prompt, arguments.tokens,
                        arguments.threads)  # fmt: skip
    finally:
        for runtime in found:
            runtime.stop()
    text = table(found, reads)
    date = time.strftime("%Y-%m-%d")
    print(f"{arguments.shape}, {arguments.threads} threads, {arguments.prompt}-token prompt, "
          f"{date}, {machine()}\n\n{text}")  # fmt: skip
    result = {
        "date": date, "machine": machine(), "arguments": vars(arguments), "probe_gbps": reads,
        "runtimes": [{"name": r.name, "version": r.hello["version"], "decode": r.decode,
                      "prefill": r.prefill, "load_s": r.hello["load_s"],
                      "peak_rss_mb": r.peak_rss_mb} for r in found],
    }  # fmt: skip
    output = HERE / "results" / f"{arguments.shape}.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
