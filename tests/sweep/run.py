"""The sweep: every entry of the registry, each in a process of its own with a limit of its time.

    python tests/sweep/run.py [--jobs 2] [--only llama,opt] [--resume] [--quant w8]

Processes are forked from a server that has imported torch, transformers and TVM already. Results
are appended to build/sweep/results.jsonl, one line a model as soon as it is done; the last line of
a model counts. What a model printed is in build/sweep/logs. `report.py` writes the public table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from child import child
from results import read_results

SWEEP = Path(__file__).resolve().parent
ROOT = SWEEP.parents[1]
LIMIT = 180
_WALL = 4  # times the limit: a process that sleeps or waits for a busy machine is ended then
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TVM_BIND_THREADS": "0", "HF_HUB_OFFLINE": "1"}
_PROCESSES = multiprocessing.get_context("forkserver")


def main() -> int:
    """Runs the sweep; exit code 1 when something came out wrong or crashed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="model types, separated by commas")
    parser.add_argument("--resume", action="store_true", help="keep what the results file has")
    parser.add_argument("--timeout", type=int, default=LIMIT, help="processor seconds a model")
    parser.add_argument("--quant", default="f32")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "sweep")
    options = parser.parse_args()
    here = os.pathsep.join(filter(None, (str(SWEEP), os.environ.get("PYTHONPATH"))))
    os.environ.update(_ENVIRONMENT, PYTHONPATH=here)  # for the server, before it imports torch
    suffix = "" if options.quant == "f32" else f"-{options.quant}"
    path = options.out / f"results{suffix}.jsonl"
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    models = options.only.split(",") if options.only else _registry()
    if not options.resume and not options.only:
        path.write_text("")
    done = read_results(path) if options.resume else {}
    _PROCESSES.set_forkserver_preload(["child", "preload"])
    _sweep([model for model in models if model not in done], options, path)
    results = {model: row for model, row in read_results(path).items() if model in models}
    return _summarize(results.values())


def _registry() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _sweep(models: list[str], options: argparse.Namespace, path: Path) -> None:
    start = time.perf_counter()
    with ThreadPoolExecutor(options.jobs) as pool, path.open("a") as file:
        futures = [pool.submit(_one, model, options) for model in models]
        for number, future in enumerate(as_completed(futures), 1):
            row = future.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            lines = row["reason"].strip().splitlines() or [""]
            print(
                f"{number:3}/{len(models)} {time.perf_counter() - start:5.0f}s "
                f"{row['model']:26} {row['status']:10} {row['wall']:5.1f}s  "
                f"{lines[-1 if row['status'] == 'crashed' else 0][:110]}",
                flush=True,
            )


def _one(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """The subject's result, or what its process died of."""
    log = options.out / "logs" / f"{model}.txt"
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    arguments = (sender, model, options.quant, str(log), options.timeout)
    process = _PROCESSES.Process(target=child, args=arguments)
    start = time.perf_counter()
    process.start()
    sender.close()
    row: dict[str, Any] = {"model": model, "cls": "", "quant": options.quant, "status": "crashed"}
    try:
        if receiver.poll(_WALL * options.timeout):
            row = json.loads(receiver.recv())
        else:
            process.kill()
            row["reason"] = f"{_frames(log)}\nnot done after {_WALL * options.timeout} s."
    except EOFError:
        process.join()
        row["reason"] = f"{_frames(log)}\nthe process ended {_how(process.exitcode or 0)}."
    process.join()
    row["wall"] = round(time.perf_counter() - start, 1)
    return row


def _frames(log: Path) -> str:
    """What the log ends with; of faulthandler's frames the innermost, and ours and the model's."""
    text = log.read_text() if log.is_file() else ""
    _, found, frames = text.rpartition("(most recent call first):")
    if not found:
        return "\n".join(text.strip().splitlines()[-12:])
    lines = frames.strip().splitlines()
    ours = [line for line in lines[3:] if "graphwright" in line or "/models/" in line]
    return "\n".join([*lines[:3], *ours[:12]])


def _how(code: int) -> str:
    if code == -signal.SIGXCPU:
        return "at the limit of its processor time"
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _summarize(rows: Iterable[dict[str, Any]]) -> int:
    counts = Counter(row["status"] for row in rows)
    print(", ".join(f"{status} {count}" for status, count in counts.most_common()))
    return 1 if counts["wrong"] or counts["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
