"""`graphwright diff`: equal artifacts are equal, and each kind of difference is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from artifact_entries import Entries
from tiny_models import tiny_model
from toy_model import write_toy

import graphwright
from graphwright.__main__ import main
from graphwright.inspector.difference import LOADS, difference
from graphwright.inspector.difference_text import difference_text
from graphwright.inspector.roofline import Load, Machine, predict

MACHINE = Machine(20.0, 100.0, 200.0)


@pytest.fixture(scope="module")
def quantized_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `artifact_path` with other weights in its head's place: w4g32, f16 keys."""
    path = tmp_path_factory.mktemp("other") / "other.gw"
    model = tiny_model("llama", num_layers=3)
    compiled = graphwright.compile(model, quant="w4g32", check=True, kv_cache_dtype="f16")
    return compiled.save(path)


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `graphwright diff`."""
    code = main(["diff", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def differs(old: Entries, new: Entries) -> dict[str, Any]:
    """The topics that differ, with what is said of them; hashes follow the entries."""
    manifest = new.json("manifest.json")
    for name in new:
        if name != "manifest.json" and new[name] != old.get(name):
            manifest["entries"][name] = {"bytes": len(new[name]), "sha256": "changed"}
    found = difference(old, new.changed(manifest=manifest), MACHINE)
    del found["files"]
    return {topic: what for topic, what in found.items() if what}


def test_identical_files_are_said_to_be_in_one_sentence(
    artifact_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again.gw"
    again.write_bytes(artifact_path.read_bytes())
    code, out, err = said(capsys, artifact_path, again)
    assert (code, err) == (0, "")
    assert out == f"{artifact_path} and {again} hold the same, by the hashes of all entries.\n"
    assert said(capsys, artifact_path, again, "--json")[1] == '{"equal": true}\n'


def test_another_quantization_is_told_by_topic(
    artifact_path: Path, quantized_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capsys, artifact_path, quantized_path)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[:2] == [f"--- {artifact_path}", f"+++ {quantized_path}"]
    topics = [line[:-1] for line in lines[2:] if line.endswith(":") and not line.startswith(" ")]
    assert topics == ["options", "passes", "graphs", "kernels", "predicted", "memory", "weights",
                      "golden", "files"]  # fmt: skip
    assert "  quant                                  w8 → w4g32" in lines
    assert "  kv_cache_dtype                         auto → f16" in lines
    assert "  KV dtypes                              float32 → float16" in lines
    assert any(line.startswith("  after quantize-kv-cache ") for line in lines)
    assert any(line.startswith("  @@ 3 times @@") for line in lines)
    assert "--graph last" in out


def test_the_other_way_round_it_says_the_opposite(
    artifact_path: Path, quantized_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = json.loads(said(capsys, artifact_path, quantized_path, "--json")[1])
    back = json.loads(said(capsys, quantized_path, artifact_path, "--json")[1])
    for topic in ("options", "memory", "predicted", "files"):
        assert {name: pair[::-1] for name, pair in there[topic].items()} == back[topic]
    assert there["weights"]["removed"] == back["weights"]["added"] != []
    deltas = there["graphs"]["last"], back["graphs"]["last"]
    assert (deltas[0]["removed"], deltas[0]["added"]) == (deltas[1]["added"], deltas[1]["removed"])


def test_one_graph_alone(
    artifact_path: Path, quantized_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = said(capsys, artifact_path, quantized_path, "--graph", "fuse-linear")
    assert code == 0 and out.endswith("\nthe same graph\n")
    code, out, _ = said(capsys, artifact_path, quantized_path, "--graph", "last")
    assert code == 1 and "-   %quantized_linear" not in out and "\n- %quantized_linear" in out
    assert 'scheme="w8"' in out and 'scheme="w4g32"' in out


@pytest.mark.parametrize("flags", [["--graph", "no-such-pass"], ["--bandwidth", "0"]])
def test_wrong_use_is_a_usage_error(
    flags: list[str], artifact_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capsys, artifact_path, artifact_path, *flags)
    assert (code, out) == (2, "")
    assert "there is no graph 'no-such-pass'; there are: 00-" in err or "--bandwidth" in err


def test_an_artifact_without_a_log_cannot_be_compared(
    artifact_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capsys, artifact_path, write_toy(tmp_path / "toy.gw"))
    assert (code, out) == (2, "")
    assert err == (
        "Error: the artifact has no log.json: an older graphwright wrote it, compile again.\n"
    )


def test_what_cannot_be_read_is_not_a_difference(
    artifact_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.gw"
    bad.write_bytes(b"no artifact")
    for other in (bad, tmp_path / "nowhere.gw"):
        code, out, err = said(capsys, artifact_path, other)
        assert (code, out) == (2, "")
        assert str(other) in err and "Traceback" not in err


def test_the_order_of_passes_and_what_they_noted(entries: Entries) -> None:
    log = entries.json("log.json")
    swapped = [log[1], log[0], *log[2:]]
    order = [[row["name"] for row in each] for each in (log, swapped)]
    assert differs(entries, entries.changed(log=swapped))["passes"] == {
        "order": order, "records": {},
    }  # fmt: skip
    log[3] = {**log[3], "notes": ["by hand"], "misses": ["'x': too large."]}
    found = differs(entries, entries.changed(log=log))
    assert found["passes"]["records"] == {
        log[3]["name"]: {"misses": [[], ["'x': too large."]], "notes": [[], ["by hand"]]}
    }
    text = difference_text({**difference(entries, entries.changed(log=log, manifest={
        **entries.json("manifest.json"), "graphwright": "0"}), MACHINE)}, MACHINE)  # fmt: skip
    assert "    + note: by hand" in text and "    + left alone: 'x': too large." in text


def test_kernels_are_counted_and_costs_are_those_of_the_roofline(entries: Entries) -> None:
    ledger, phases = entries.json("ledger.json"), entries.json("phases.json")
    row = next(each for each in ledger if each["entry"] == "decode" and each["kernels"])
    used = sum(each["kernels"] == row["kernels"] for each in ledger if each["entry"] == "decode")
    (kernel,) = row["kernels"]
    row["kernels"] = ["faster"]
    phases["decode"][0]["weight_bytes"] += 1000
    found = differs(entries, entries.changed(ledger=ledger, phases=phases))
    assert found["kernels"] == {
        "decode": {
            "lowerings": {}, "kernels": {kernel: [used, used - 1 or None], "faster": [None, 1]},
        }
    }  # fmt: skip
    ((entry, (old, new)),) = found["predicted"].items()
    assert entry == "decode" and new["bytes"] - old["bytes"] == 1000
    steps = predict(phases["decode"], LOADS["decode"], MACHINE)
    assert new["seconds"] == sum(each.seconds for each in steps)
    assert LOADS["decode"] == Load(1, 128)


def test_golden_tokens_are_compared_up_to_where_they_part(entries: Entries) -> None:
    golden = entries.json("golden.json")
    other = {**golden, "greedy": [*golden["greedy"][:2], 99, *golden["greedy"][3:]]}
    other["top"] = [each + 0.25 if i == 1 else each for i, each in enumerate(golden["top"])]
    found = differs(entries, entries.changed(golden=other))
    assert set(found) == {"graphs", "passes", "golden"}
    text = difference_text({**_nothing(), "golden": found["golden"]}, MACHINE)
    assert "from token 3 on: " in text and " → 99 " in text
    assert "the largest logit moves by up to 0.2500" in text
    missing = {key: [value, None] for key, value in golden.items()}
    text = difference_text({**_nothing(), "golden": missing}, MACHINE)
    assert text == "golden:\n  one of them has none"


def _nothing() -> dict[str, Any]:
    """A difference in which no topic has anything to say."""
    topics = ("about", "options", "versions", "kernels", "predicted", "memory", "golden", "files")
    return {
        **{topic: {} for topic in topics}, "weights": None,
        "passes": {"order": None, "records": {}},
        "graphs": {"stages": {}, "last": {"equal": True}},
    }  # fmt: skip


def test_a_weight_with_other_bytes_is_named(entries: Entries) -> None:
    plan, manifest = entries.json("plan.json"), entries.json("manifest.json")
    size = manifest["entries"]["weights.bin"]["bytes"]
    one = plan["weights"]["entries"][3]
    bits = bytearray(size)
    old = Entries(entries | {"weights.bin": bytes(bits)})
    bits[one["offset"] + one["bytes"] - 1] = 1
    new = Entries(entries | {"weights.bin": bytes(bits)})
    assert differs(old, new)["weights"] == {
        "same": len(plan["weights"]["entries"]) - 1, "changed": [one["name"]], "retyped": {},
        "removed": [], "added": [],
    }  # fmt: skip
