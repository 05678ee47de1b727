"""The delta of two printed graphs: what a pass did, not how names were numbered anew."""

from __future__ import annotations

from itertools import pairwise

from artifact_entries import Entries

from graphwright.inspector.graph_delta import GraphDelta, compare_graphs
from graphwright.inspector.graph_nodes import parse_graph
from graphwright.inspector.pass_data import stages

BEFORE = """\
%tokens : i64[T] = input
%w_0_a : f32[4, 4] = weight
%w_1_a : f32[4, 4] = weight
%mul_1 : f32[T, 4] = aten.mul.Tensor(%tokens, 1)
%mul_2 : f32[T, 4] = aten.mul.Tensor(%mul_1, 3)
%linear_1 : f32[T, 4] = aten.linear(%mul_2, %w_0_a)
%mul_3 : f32[T, 4] = aten.mul.Tensor(%linear_1, 3)
%linear_2 : f32[T, 4] = aten.linear(%mul_3, %w_1_a)
return %linear_2
"""


def rows(delta: GraphDelta) -> list[list[tuple[str, str]]]:
    """Of each hunk the changes alone."""
    return [[row for row in hunk.rows if row[0] != " "] for hunk in delta.hunks]


def test_an_equal_graph_has_no_delta() -> None:
    assert compare_graphs(BEFORE, BEFORE).empty


def test_what_is_only_numbered_anew_is_unchanged() -> None:
    after = BEFORE.replace("%mul_1 : f32[T, 4] = aten.mul.Tensor(%tokens, 1)\n", "")
    after = after.replace("%mul_1", "%tokens").replace("%mul_2", "%mul_1").replace("%mul_3", "%m2")
    delta = compare_graphs(BEFORE, after.replace("%m2", "%mul_2"))
    assert (delta.removed, delta.added, delta.changed, delta.moved) == (1, 0, 1, 0)
    assert rows(delta) == [[
        ("-", "%mul_1 : f32[T, 4] = aten.mul.Tensor(%tokens, 1)"),
        ("<", "%mul_2 : f32[T, 4] = aten.mul.Tensor(%mul_1, 3)"),
        (">", "%mul_1 : f32[T, 4] = aten.mul.Tensor(%tokens, 3)"),
    ]]  # fmt: skip


def test_the_same_change_in_every_layer_is_shown_once() -> None:
    threefold = "".join(
        f"%w_{i}_a : f32[4] = weight\n%neg_{i} : f32[T] = aten.neg(%w_{i}_a)\n"
        f"%abs_{i} : f32[T] = aten.abs(%neg_{i})\n%sin_{i} : f32[T] = aten.sin(%abs_{i})\n"
        f"%cos_{i} : f32[T] = aten.cos(%sin_{i})\n%tan_{i} : f32[T] = aten.tan(%cos_{i})\n"
        for i in range(1, 4)
    )
    (hunk,) = compare_graphs(threefold, threefold.replace("aten.abs", "aten.exp")).hunks
    assert hunk.times == 3
    assert [sign for sign, _ in hunk.rows] == [" ", "-", "+", "<", ">", " "]


def test_weights_that_change_in_every_layer_are_one_hunk() -> None:
    old = "".join(f"%w_{i}_a : f32[4] = weight\n%w_{i}_b : f32[9] = weight\n" for i in range(3))
    new = "".join(
        f"%w_{i}_a : i8[4] = weight\n%w_{i}_a_scale : f32[1] = weight\n" for i in range(3)
    )
    delta = compare_graphs(f"{old}%head : f32[2] = weight\n", new)
    assert (delta.removed, delta.added, delta.changed, delta.moved) == (4, 3, 3, 0)
    assert [(hunk.times, [sign for sign, _ in hunk.rows]) for hunk in delta.hunks] == [
        (3, ["<", ">", "+", "-"]), (1, ["-"]),
    ]  # fmt: skip


def test_a_node_that_moved_is_counted_and_not_shown() -> None:
    lines = BEFORE.splitlines()
    lines.insert(3, "%neg_1 : f32[4, 4] = aten.neg(%w_1_a)")
    moved = [*lines[:3], *lines[4:7], lines[3], *lines[7:]]
    delta = compare_graphs("\n".join(lines), "\n".join(moved))
    assert (delta.removed, delta.added, delta.changed, delta.moved) == (0, 0, 0, 1)
    assert not delta.hunks


def test_another_dtype_and_another_constant_are_changes_in_place() -> None:
    after = BEFORE.replace("%mul_3 : f32", "%mul_3 : bf16").replace("%mul_1, 3", "%mul_1, 4")
    delta = compare_graphs(BEFORE, after)
    assert (delta.removed, delta.added, delta.changed) == (0, 0, 2)


def test_what_a_region_computes_is_part_of_it() -> None:
    call = "%x : f32[T] = input\n%region_1 : f32[T] = region(%x)\n  | return %input_0\nreturn %x\n"
    assert len(parse_graph(call)) == 3
    delta = compare_graphs(call, call.replace("return %input_0", "return %neg_1"))
    assert delta.changed == 1


def test_a_line_of_another_form_is_kept() -> None:
    (node,) = parse_graph("what %is this\n")
    assert (node.line, node.name, node.op, node.operands) == ("what %is this", "", "", ("is",))


def test_every_pass_of_a_model_adds_and_removes_what_its_log_counts(entries: Entries) -> None:
    names = stages(entries)
    texts = [entries.read(f"graph/{name}.txt").decode() for name in names]
    log = entries.json("log.json")
    rewrote = 0
    for (before, after), record in zip(pairwise(texts), log[1:], strict=True):
        delta = compare_graphs(before, after)
        assert delta.added - delta.removed == record["nodes_after"] - record["nodes_before"]
        assert delta.empty or record["rewrites"], record["name"]
        rewrote += not delta.empty
    assert rewrote > 10
    assert ["\n".join(n.text for n in parse_graph(each)) + "\n" for each in texts] == texts
