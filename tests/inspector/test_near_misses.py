"""`graphwright why-not`: the reasons of the log, or what can be said without any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from artifact_entries import Entries

from graphwright.__main__ import main
from graphwright.inspector.near_misses import near_misses, near_misses_text


def with_misses(entries: Entries, name: str, *misses: str) -> Entries:
    log = entries.json("log.json")
    next(row for row in log if row["name"] == name)["misses"] = list(misses)
    return entries.changed(log=log)


def test_reasons_that_differ_in_numbers_are_said_once_with_their_nodes(entries: Entries) -> None:
    names = ["mul", *(f"mul_{i}" for i in range(1, 8))]
    misses = [f"'{name}': its weight has {i + 2} users." for i, name in enumerate(names)]
    changed = with_misses(entries, "fold-scales", *misses, "no 'add' is like it.", "Nothing.")
    found = near_misses(changed, "fold-scales")
    assert found == {
        "pass": "fold-scales",
        "rewrites": 0,
        "reasons": [
            [misses[0], 8, names],
            ["no 'add' is like it.", 1, ["add"]],
            ["Nothing.", 1, []],
        ],
    }
    lines = near_misses_text(found, {}).splitlines()
    assert lines[:3] == [
        "fold-scales made 0 rewrites and left 10 that look alike:",
        "  'mul': its weight has 2 users.  (×8)",
        "    these are mul, mul_1, mul_2, mul_3, mul_4, mul_5 and 2 more",
    ]


def test_a_pass_that_left_nothing_or_found_nothing_says_so(
    artifact_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why-not", "recognize-attention", str(artifact_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("recognize-attention made 3 rewrites and left nothing that looked alike.")
    assert "what it does:\n  sdpa, or matmul" in out
    assert main(["why-not", "recognize-experts", str(artifact_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "pass": "recognize-experts", "rewrites": 0, "reasons": [],
    }  # fmt: skip
    assert main(["why-not", "recognize-experts", str(artifact_path)]) == 0
    assert "found nothing that looks like what it rewrites." in capsys.readouterr().out


def test_an_unknown_pass_lists_those_there_are(
    artifact_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why-not", "fuse-everything", str(artifact_path)]) == 2
    err = capsys.readouterr().err
    assert "the artifact's log has no pass 'fuse-everything'; it has: drop-no-ops, " in err
    assert err.rstrip().endswith("plan-memory.")
