"""What is said of schemes that a compiler chose, as text and on the page."""

from __future__ import annotations

import json
from typing import Any

import pytest
from artifact_entries import Entries
from test_page_scripts import run_node

from graphwright.inspector import scheme_choice, scheme_table, summary
from graphwright.inspector.page_data import page_data
from graphwright.ir.scheme_choice import (
    SchemeChoice,
    SchemeOption,
    Trial,
    WayPoint,
    WeightChoice,
)


def weight(name: str, scheme: str, fixed: bool, *options: SchemeOption) -> WeightChoice:
    return WeightChoice(name, ("linear",), 1000, scheme, fixed, options)


CHOICE = SchemeChoice(
    budget="at most 0.01 nats a token", candidates=("w4g32", "w8", "bf16"), tokens=2048,
    held_out=4096, origin="", bits=6.28, bytes=1570, read=1500, predicted=0.0091,
    measured=0.0095, error=0.0002,
    weights=(
        weight("up", "w4g32", False, SchemeOption("bf16", 0.0, "exact", 2000, 2000),
               SchemeOption("w8", 3e-5, "estimated", 1000, 1000),
               SchemeOption("w4g32", 0.009, "measured", 570, 570)),
        weight("head", "w8", True, SchemeOption("w8", 1e-4, "measured", 1000, 930)),
    ),
    trials=(Trial(0.012, 0.0141, 0.0003, 5.5, 1400, 1400, False),
            Trial(0.0091, 0.0095, 0.0002, 6.28, 1570, 1500, True)),
    line=(WayPoint(4.5, 1140, 1140, 0.02), WayPoint(6.28, 1570, 1500, 0.0091),
          WayPoint(12.0, 3000, 3000, 1e-4)),
)  # fmt: skip


@pytest.fixture
def chosen(entries: Entries) -> Entries:
    """An artifact for which schemes were chosen."""
    return Entries(entries | {"quant.json": json.dumps(CHOICE.as_json()).encode()})


def test_the_table_says_each_loss_and_what_was_tried(chosen: Entries) -> None:
    lines = scheme_table(chosen).splitlines()
    assert lines[0] == "budget     at most 0.01 nats a token"
    assert lines[2] == "measured   0.0095 ± 0.0002 nats a token, on 4096 held-out tokens"
    (head,) = (line.split() for line in lines if line.startswith("weight"))
    assert head == ["weight", "numbers", "w4g32", "w8", "bf16"]
    assert "up            1000    [0.009]     ~3e-05          =" in lines
    assert "head          1000               *0.0001" in lines
    assert "  5.500      0.012     0.0141   0.0003  too much" in lines
    assert "  6.280     0.0091     0.0095   0.0002  within the budget" in lines
    marked = [line for line in lines if line.startswith(">")]
    assert len(marked) == 1 and marked[0].split()[1:3] == ["6.280", "0.0091"]
    assert scheme_choice(chosen)["weights"][1]["fixed"] is True
    assert "6.28 bits a weight, KL divergence 0.0095 nats a token" in summary(chosen)


def test_an_artifact_without_a_choice_says_what_its_recipe_is(entries: Entries) -> None:
    quant = entries.json("options.json")["quant"]
    with pytest.raises(KeyError, match=f"its recipe {quant} says them"):
        scheme_table(entries)
    assert page_data(entries, "tiny.gw")["choice"] is None
    assert "inspect --quant" not in summary(entries)


def test_the_page_has_the_same(chosen: Entries) -> None:
    data: Any = page_data(chosen, "tiny.gw")["choice"]
    assert data == json.loads(json.dumps(CHOICE.as_json()))
    options = [each["options"] for each in data["weights"]]
    texts = run_node("return given.map((options) => options.map(lossText));", options)
    assert texts == [["=", "~0.00003", "0.009"], ["0.0001"]]
    assert run_node("return [lossText(undefined), schemesView(given)];", None) == ["", []]
