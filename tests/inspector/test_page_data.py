"""What the page is given: it is what the artifact holds, each thing once."""

from __future__ import annotations

import pytest
from artifact_entries import Entries

from graphwright.inspector.page_data import page_data
from graphwright.inspector.pass_data import stages
from graphwright.pass_descriptions import pass_descriptions
from graphwright.passes.pipeline import pipeline


def test_texts_are_the_graphs_of_the_artifact(entries: Entries) -> None:
    data = page_data(entries, "tiny")
    for row in data["passes"]:
        text = "\n".join(data["lines"][i] for i in data["texts"][row["text"]])
        assert text == entries.read(f"graph/{row['stage']}.txt").decode()
    assert len(data["lines"]) == len(set(data["lines"]))
    assert len(data["texts"]) < len(data["passes"])  # a pass that does nothing leaves no new text


def test_passes_are_the_log_and_the_first_one_has_no_delta(entries: Entries) -> None:
    data = page_data(entries, "tiny", pass_descriptions(["fuse-linear", "no-such-pass"]))
    log = entries.json("log.json")
    assert [{k: row[k] for k in log[0]} for row in data["passes"]] == log
    assert [row["delta"] is None for row in data["passes"]] == [i == 0 for i in range(len(log))]
    (linear,) = (row for row in data["passes"] if row["name"] == "fuse-linear")
    assert linear["group"] == "fuse" and "residual" in linear["what"]
    assert linear["delta"]["removed"] > linear["delta"]["added"] > 0
    assert {row["what"] for row in data["passes"] if row is not linear} == {""}


def test_each_step_has_its_row_of_the_ledger_and_its_phases(entries: Entries) -> None:
    data = page_data(entries, "tiny")
    ledger, phases = entries.json("ledger.json"), entries.json("phases.json")
    assert data["graph"]["matched"] == {"decode": True, "prefill": True}
    for name, entry in data["entries"].items():
        rows = [row for row in ledger if row["entry"] == name]
        assert [entry["ledger"][i]["kernels"] for i in entry["lowered"]] == [
            row["kernels"] for row in rows
        ]
        found = [
            (rows[step]["step"], entry["facts"][i])
            for step, numbers in enumerate(entry["phases"])
            for i in numbers
        ]
        assert found == [
            (each["step"], {k: v for k, v in each.items() if k not in ("step", "layer")})
            for each in phases[name]
        ]
        assert len(entry["facts"]) < len(phases[name])


def test_every_step_is_a_node_of_one_group_and_of_its_op(entries: Entries) -> None:
    data = page_data(entries, "tiny")
    steps = [step for group in data["graph"]["groups"] for each in group["steps"] for step in each]
    entry = data["entries"]["decode"]
    assert sorted(steps) == list(range(len(entry["lowered"])))
    for group in data["graph"]["groups"]:
        for _, _, op, _, _, step in group["nodes"]:
            if step is not None:
                assert entry["ledger"][entry["lowered"][step]]["op"].removesuffix(".default") == op


def test_buffers_have_the_names_of_the_graph_they_are_shown_with(entries: Entries) -> None:
    data, plan = page_data(entries, "tiny"), entries.json("plan.json")
    last = entries.read(f"graph/{stages(entries)[-1]}.txt").decode()
    for name, entry in data["memory"].items():
        assert [row[1:] for row in entry["buffers"]] == [
            [each[key] for key in ("offset", "bytes", "first", "last")]
            for each in plan["entries"][name]["buffers"]
        ]
        assert all(f"%{row[0].split('.')[0]} : " in last for row in entry["buffers"])
        assert max(row[4] for row in entry["buffers"]) < len(entry["steps"])


def test_steps_that_are_not_those_of_the_graph_are_not_matched(entries: Entries) -> None:
    ledger = [row for row in entries.json("ledger.json") if row["op"] != "gw.rope.default"]
    data = page_data(entries.changed(ledger=ledger), "tiny")
    assert data["graph"]["matched"] == {"decode": False, "prefill": False}
    assert any(row[0].endswith("_default") for row in data["memory"]["decode"]["buffers"])


def test_an_artifact_without_predictions_has_none(entries: Entries) -> None:
    data = page_data(entries.changed(phases={}), "tiny")
    assert all(entry["facts"] == [] for entry in data["entries"].values())


def test_what_is_missing_is_named(entries: Entries) -> None:
    entries = Entries(entries)
    del entries["ledger.json"]
    with pytest.raises(KeyError, match=r"has no ledger\.json"):
        page_data(entries, "tiny")


def test_launches_of_a_gpu_are_kept_with_what_they_take(entries: Entries) -> None:
    gpu = entries.for_gpu()
    found = page_data(gpu, "tiny")["gpu"]
    assert found["launches"] == [["k", [7, 1, 1], ["arena", "weights"]]]
    assert found["entries"]["decode"] == [
        {"tokens": 1, "rows": 1, "launches": [0, 0], "largest": [0], "drawn": []}
    ]
    assert found["kernels"]["sm_90"]["k"]["registers"] == 40
    assert found["kernels"]["sm_90"]["k"]["cubin"] == 99
    assert found["sources"] == {"k": "def k(): pass"}


def test_every_pass_is_described_by_its_docstring() -> None:
    steps = pipeline()
    found = pass_descriptions(step.title() for step in steps)
    for step in steps:
        described = found[step.title()]
        assert described["stage"] == step.stage.value
        first = " ".join((type(step).__doc__ or "").split("\n\n")[0].split())
        assert described["what"].split("\n\n")[0] == first
    assert pass_descriptions(["../passes/base", "base", "no-such-pass"]) == {}
