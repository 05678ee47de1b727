"""The page's scripts: its formulas are those of roofline.py, and it draws itself in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from artifact_entries import Entries
from test_page_html import HOSTILE

from graphwright.inspector.page_html import page_html, page_script
from graphwright.inspector.roofline import Load, Machine, load_of, predict
from graphwright.runtime.plan import PoolPlan, Reach

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync", "--disable-extensions")  # fmt: skip


def run_node(program: str, given: Any) -> Any:
    """What `program`, behind the page's functions, makes of `given`: JSON in and out."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which is not on PATH, to run the page's scripts")
    declarations = page_script().partition('window.addEventListener("error"')[0]
    code = f"""{declarations}
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify((() => {{ {program} }})()));"""
    result = subprocess.run(
        [node, "-e", code], input=json.dumps(given), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_pages_predictions_are_those_of_the_command_line(entries: Entries) -> None:
    phases = entries.json("phases.json")
    recurrent = {**phases["decode"][0], "bytes_per_sequence": 4096, "rows": "R"}
    phases["decode"].append(recurrent)
    cases = [
        (entry, Load(tokens, before, sampled), Machine(*ceilings))
        for entry in phases
        for tokens, before, sampled in ((1, 0, 1), (1, 128, 1), (7, 33, 0), (512, 1499, 3))
        for ceilings in ((20.0, 100.0, 200.0), (0.37, 1e4, 77.7))
    ]
    given = {
        "phases": phases,
        "cases": [[entry, asdict(load), asdict(machine)] for entry, load, machine in cases],
    }
    found = run_node(
        "return given.cases.map(([entry, load, machine]) =>"
        " predict(given.phases[entry], load, machine));",
        given,
    )
    for (entry, load, machine), rows in zip(cases, found, strict=True):
        expected = predict(phases[entry], load, machine)
        assert rows == [
            {key: getattr(each, key) for key in ("bytes", "operations", "seconds", "bound")}
            for each in expected
        ]


def test_the_parts_of_a_phases_bytes_are_all_of_them(entries: Entries) -> None:
    found = run_node(
        "const load = {tokens: 5, before: 40, sampled: 2};"
        "return given.map((facts) => [loadOf(facts, load)[0],"
        " sum(Object.values(partsOf(facts, load)))]);",
        entries.json("phases.json")["prefill"],
    )
    assert found and all(whole == parts for whole, parts in found)


def test_rows_that_attend_to_keys_of_their_own_choice_attend_to_so_many_at_most() -> None:
    facts = {
        "step": "s", "kernel": "k", "layer": 0, "rows": "T", "arithmetic": "float32",
        "weight_bytes": 0, "weight_bytes_per_row": 0, "lookup_bytes": 0, "bytes_per_row": 0,
        "bytes_per_position": 10, "operations_per_row": 0, "operations_per_position": 1,
        "most_positions": 8,
    }  # fmt: skip
    loads = [Load(1, 3), Load(1, 100), Load(5, 5), Load(20, 0), Load(2, 7), Load(3, 1000)]
    want = [
        (10 * min(load.before + load.tokens, 8 * load.tokens),
         sum(min(load.before + i, 8) for i in range(1, load.tokens + 1)))
        for load in loads
    ]  # fmt: skip
    assert [load_of(facts, load) for load in loads] == want
    found = run_node(
        "return given.loads.map((load) => loadOf(given.facts, load));",
        {"facts": facts, "loads": [asdict(load) for load in loads]},
    )
    assert [tuple(each) for each in found] == want


def test_the_kv_cache_costs_whole_blocks_and_a_slot_for_each_sequence() -> None:
    kv = {"block_size": 16, "block_bytes": 1000, "slot_bytes": 7}
    found = run_node("return [[1, 1], [1, 16], [3, 17]].map(([s, n]) => kvBytes(given, s, n));", kv)
    assert found == [1007, 1007, 6021]


def test_the_calculator_counts_what_sequences_hold_in_each_pool() -> None:
    pools = PoolPlan(100), PoolPlan(1000, Reach(first=4, span=33))
    kv = {"block_size": 16, "pools": [asdict(pool) for pool in pools]}
    tokens = [1, 16, 17, 80, 81, 1000]
    found = run_node(
        "return given.tokens.map((count) => kvBytes(given.kv, 3, count));",
        {"kv": kv, "tokens": tokens},
    )
    blocks = [-(-count // 16) for count in tokens]
    assert found == [3 * sum(p.block_bytes * p.held_of(n, 16) for p in pools) for n in blocks]
    assert found[-1] == 3 * (63 * 100 + 5 * 1000)


def test_what_differs_between_two_lines_is_marked() -> None:
    """Elements are counted as their text here: el is of the browser."""
    found = run_node(
        "el = (tag, _, text) => ({[tag]: text}); return differing(...given);",
        ["%mul_2 : f32[T] = aten.mul(%a_1, 2)", "%mul_1 : f32[T] = aten.mul(%a_9, 3)"],
    )
    assert found == ["%mul_2 : f32[T] = aten.mul(%a_1, ", {"mark": "2"}, ")"]


@pytest.fixture(scope="module")
def browser() -> list[str]:
    """A browser's command line."""
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser on PATH ({', '.join(_BROWSERS)}) to draw the page")
    return [found, *_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]


def drawn(browser: list[str], path: Path) -> str:
    """The document after its scripts ran."""
    command = [*browser, f"--user-data-dir={path.parent}/profile", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout


def test_the_page_draws_itself(browser: list[str], entries: Entries, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_html(entries, "tiny.gw"), encoding="utf-8")
    found = drawn(browser, path)
    assert 'data-state="ready"' in found  # an error in any script would make it "failed"
    shown = re.sub(r"<[^>]*>", " ", found.partition('id="graphwright-data"')[0])
    for wanted in ("Layers 0-1", "× 2", "Cost of a step", "KV cache", "Golden tokens"):
        assert wanted in shown, wanted
    for broken in ("NaN", "undefined", "[object", "Infinity"):
        assert broken not in shown, broken


def test_for_gpus_it_draws_launches_and_predicts_nothing(
    browser: list[str], entries: Entries, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_html(entries.for_gpu(), "gpu.gw"), encoding="utf-8")
    found = drawn(browser, path)
    assert 'data-state="ready"' in found
    shown = re.sub(r"<[^>]*>", " ", found.partition('id="graphwright-data"')[0])
    for wanted in ("no predictions for GPUs", "2 launches; 1 more where greedy", "def k(): pass"):
        assert wanted in shown, wanted
    assert "Cost of a step" not in shown and "predicted time" not in shown


def test_a_drawn_page_holds_hostile_names_as_text(
    browser: list[str], entries: Entries, tmp_path: Path
) -> None:
    hostile = entries.replaced("model_layers_0_self_attn_q_k_v_proj_weight", HOSTILE)
    log = hostile.json("log.json")
    log[1]["misses"] = [HOSTILE]
    path = tmp_path / "page.html"
    path.write_text(page_html(hostile.changed(log=log), HOSTILE), encoding="utf-8")
    found = drawn(browser, path)
    assert 'data-state="ready"' in found
    assert "<img" not in found and "onerror=alert(1)&gt;" in found
