"""docs/architectures.md from the results of the sweep.

python tests/sweep/report.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from results import read_results

__all__ = ["report"]

ROOT = Path(__file__).resolve().parents[2]

_INTRO = """# Architectures

Every entry of the causal-LM registry of transformers {transformers}, in a tiny configuration that
holds every layer type of its family, with random weights, compiled by `graphwright.compile` and
run by the engine: a ragged batch of three prompts, a prompt read in two chunks, and 12 greedy steps
of each. *Exact* means that all logits equal those of the eager model, run over the whole text
without a cache, within the float32 tolerance of `ir/tolerance.py`. *Token by token*: the modules
that carry states were traced as they decode ([decision 12](decisions/0012-states.md)).

`make sweep` repeats it and writes this page; nothing here is written by hand. A model that is not
listed, or that comes with its own code, is treated the same way: nothing in graphwright knows a
model's name.
"""
_SECTIONS = {
    "wrong": ("Wrong", "Compiled, and the logits differ: each of these is a bug."),
    "crashed": ("Crashed", "An error that is not a refusal, or the time limit: bugs too."),
    "exact": ("Exact", ""),
    "refused": ("Refused", "The compiler says why, and nothing is produced."),
    "no decoder": (
        "Not text decoders",
        "Entries that do not run on token ids alone, or whose eager logits change when later "
        "tokens are added. They are not counted.",
    ),
}
_PATH = re.compile(r'(?:File "|(?<=\s))/\S*?/(?=(?:site-packages|transformers)/)')


def report(rows: Iterable[dict[str, Any]], transformers_version: str) -> str:
    """The page, as markdown."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: str(row["model"]).lower()):
        found.setdefault(row["status"], []).append(row)
    counted = {status: found[status] for status in _SECTIONS if status in found}
    total = sum(len(each) for status, each in counted.items() if status != "no decoder")
    parts = [
        _INTRO.format(transformers=transformers_version),
        f"Of {total} text decoders: "
        + ", ".join(f"{len(found.get(status, []))} {status}" for status in list(_SECTIONS)[:-1])
        + ".\n",
    ]
    for status, each in counted.items():
        title, words = _SECTIONS[status]
        parts.append(f"## {title}: {len(each)}\n")
        if words:
            parts.append(f"{words}\n")
        parts.append(_exact_table(each) if status == "exact" else _reason_table(each))
    return "\n".join(parts)


def _exact_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| model type | class | layers | traced by |", "|---|---|---|---|"]
    lines += [
        f"| `{row['model']}` | {row['cls']} | {_layers(row)} | {row.get('rung', '')} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _reason_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| model type | layers | reason | traced by |", "|---|---|---|---|"]
    for row in rows:
        reason, rung = _reason(row), row.get("rung") or "–"
        lines.append(f"| `{row['model']}` | {_layers(row)} | {reason} | {rung} |")
    return "\n".join(lines) + "\n"


def _layers(row: dict[str, Any]) -> str:
    return str(row.get("layers", "")).replace("_attention", "")


def _reason(row: dict[str, Any]) -> str:
    """The whole text on one line, without the paths of this machine and the error's class."""
    text = row["reason"].strip()
    if row["status"] == "crashed":
        text = text.splitlines()[-1]
    else:
        text = re.sub(r"^\w+Error: ", "", text)
    text = _PATH.sub("", text).replace("site-packages/", "").replace('", line ', ":")
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def main() -> None:
    """Writes the page from build/sweep/results.jsonl."""
    rows = read_results(ROOT / "build" / "sweep" / "results.jsonl")
    path = ROOT / "docs" / "architectures.md"
    path.write_text(report(rows.values(), version("transformers")))
    print(f"wrote {path.relative_to(ROOT)}: {len(rows)} entries")


if __name__ == "__main__":
    main()
