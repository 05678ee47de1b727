"""Layers of a planned graph, equal ones folded."""

from __future__ import annotations

import pytest
from artifact_entries import Entries

from graphwright.inspector.graph_nodes import parse_graph
from graphwright.inspector.layers import fold_layers, layers_of, number_ranges
from graphwright.inspector.pass_data import stages


def graph(*scales: int) -> str:
    """A layer for each scale, between an embedding and a head; all read one table."""
    lines = ["%tokens : i64[T] = input", "%embed_weight : f32[9, 4] = weight"]
    lines += [f"%layers_{i}_a : f32[4, 4] = weight" for i in range(len(scales))]
    lines.append("%embedding_1 : f32[T, 4] = gw.embedding(%embed_weight, %tokens)")
    lines.append("%region_1 : f32[T, 4] = region(%tokens)")
    last = "%embedding_1"
    for i, scale in enumerate(scales):
        lines.append(f"%linear_{i + 1} : f32[T, 4] = gw.linear({last}, %layers_{i}_a)")
        lines.append(
            f"%rope_{i + 1} : f32[T, 4] = gw.rope(%linear_{i + 1}, %region_1, scale={scale})"
        )
        last = f"%rope_{i + 1}"
    lines.append(f"%linear_9 : f32[T, 9] = gw.linear({last}, %embed_weight)")
    return "\n".join([*lines, "return %linear_9"])


def test_equal_layers_are_one_group_and_the_rest_is_before_or_behind() -> None:
    nodes = parse_graph(graph(1, 1, 1))
    groups = fold_layers(nodes)
    assert [group.layers for group in groups] == [(), (0, 1, 2), ()]
    named = [[nodes[i].name for i in group.nodes] for group in groups]
    assert named == [["embedding_1", "region_1"], ["linear_1", "rope_1"], ["linear_9", ""]]
    assert [[nodes[i].name for i in each] for each in groups[1].members] == [
        ["linear_1", "rope_1"], ["linear_2", "rope_2"], ["linear_3", "rope_3"],
    ]  # fmt: skip


def test_layers_that_differ_in_a_constant_are_apart() -> None:
    groups = fold_layers(parse_graph(graph(1, 2, 1, 2)))
    assert [group.layers for group in groups] == [(), (0, 2), (1, 3), ()]


def test_layers_that_read_another_table_are_apart() -> None:
    table = "%region_1 : f32[T, 4] = region(%tokens)"
    text = graph(1, 1, 1, 1).replace("gw.rope(%linear_3, %region_1", "gw.rope(%linear_3, %region_2")
    text = text.replace(table, f"{table}\n{table.replace('region_1', 'region_2')}")
    assert [group.layers for group in fold_layers(parse_graph(text))] == [
        (), (0, 1, 3), (2,), (),
    ]  # fmt: skip


def test_a_last_number_of_a_name_is_no_layer() -> None:
    """Weights of one name are numbered: `norm_weight_1` is of no layer."""
    text = graph(1, 1).replace("embed_weight", "norm_weight_1")
    assert [group.layers for group in fold_layers(parse_graph(text))] == [(), (0, 1), ()]


def test_every_computed_node_is_in_one_group(entries: Entries) -> None:
    nodes = parse_graph(entries.read(f"graph/{stages(entries)[-1]}.txt").decode())
    groups = fold_layers(nodes)
    found = sorted(i for group in groups for member in group.members for i in member)
    assert found == [i for i, node in enumerate(nodes) if node.computed]
    assert [group.layers for group in groups] == [(), (0, 1), (2,), ()]  # the last one samples


def test_layers_are_those_of_the_phases(entries: Entries) -> None:
    """The number in a weight's path, as the backend sees it, and in its name are the same."""
    nodes = parse_graph(entries.read(f"graph/{stages(entries)[-1]}.txt").decode())
    of = dict(zip((node.name for node in nodes), layers_of(nodes), strict=True))
    running = [node for node in nodes if node.runs]
    ledger = [row for row in entries.json("ledger.json") if row["entry"] == "decode"]
    printed = {row["step"]: node.name for row, node in zip(ledger, running, strict=True)}
    phases = [each for each in entries.json("phases.json")["decode"] if each["layer"] is not None]
    assert phases and all(of[printed[each["step"]]] == each["layer"] for each in phases)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((3,), "3"), ((0, 1, 2), "0-2"), ((0, 1, 4), "0-1, 4"), ((0, 2, 4, 6), "0, 2, … 6"), ((), "")],
)
def test_numbers_are_written_in_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert number_ranges(numbers) == text
