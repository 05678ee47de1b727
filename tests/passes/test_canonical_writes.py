"""Values that are written part by part, in canonical spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import build_program, fire, random_inputs, rows

from graphwright.ir import PassError, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close
from graphwright.passes.canonicalize_ops import CanonicalizeOps

aten = torch.ops.aten


def filled(x: Any) -> Any:
    """A new [1, T, 4, 6] whose columns are written in two parts, as functionalized."""
    new = aten.mul.Tensor(x, 0.0)
    first = aten.copy.default(aten.slice.Tensor(new, 3, 0, 4), aten.slice.Tensor(x, 3, 0, 4))
    new = aten.slice_scatter.default(new, first, 3, 0, 4)
    rest = aten.copy.default(aten.slice.Tensor(new, 3, 4, 2**63 - 1), aten.slice.Tensor(x, 3, 2, 4))
    return aten.slice_scatter.default(new, rest, 3, 4, 2**63 - 1)


SPELLINGS: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "both parts are written": (
        filled,
        [
            "aten.slice.Tensor(%x, 3, 0, 4)",
            "aten.slice.Tensor(%x, 3, 2, 4)",
            "aten.cat([%slice_1, %slice_2], 3)",
        ],
    ),
    "one column is written": (
        lambda x: aten.select_scatter.default(x, aten.neg.default(aten.select.int(x, 3, 0)), 3, 1),
        [
            "aten.select.int(%x, 3, 0)",
            "aten.neg(%select_1)",
            "aten.unsqueeze(%neg_1, 3)",
            "aten.slice.Tensor(%x, 3, 0, 1)",
            "aten.slice.Tensor(%x, 3, 2, 6)",
            "aten.cat([%slice_1, %unsqueeze_1, %slice_2], 3)",
        ],
    ),
    "a broadcast is written": (
        lambda x: aten.slice_scatter.default(
            x,
            aten.copy.default(aten.slice.Tensor(x, 2, 1, 3), aten.slice.Tensor(x, 2, 0, 1)),
            2,
            1,
            3,
        ),
        [
            "aten.slice.Tensor(%x, 2, 0, 1)",
            "aten.expand(%slice_1, [-1, -1, 2, -1])",
            "aten.slice.Tensor(%x, 2, 0, 1)",
            "aten.slice.Tensor(%x, 2, 3, 4)",
            "aten.cat([%slice_2, %expand_1, %slice_3], 2)",
        ],
    ),
    "another type is written": (
        lambda x: aten.copy.default(aten.gt.Scalar(x, 0), x),
        ["aten._to_copy(%x, dtype=bool)"],
    ),
    "every third column is written": (
        lambda x: aten.slice_scatter.default(
            x, aten.neg.default(aten.slice.Tensor(x, 3, 0, 2)), 3, 1, 2**63 - 1, 3
        ),
        [
            "aten.slice.Tensor(%x, 3, 0, 2)",
            "aten.neg(%slice_1)",
            "aten.cat([%x, %neg_1], 3)",
            "aten.index_select(%cat_1, 3, %chosen_entries)",
        ],
    ),
    "nothing is written": (
        lambda x: aten.neg.default(
            aten.slice_scatter.default(x, aten.slice.Tensor(x, 3, 6, 6), 3, 6, 2**63 - 1, 2)
        ),
        ["aten.neg(%x)"],
    ),
    "everything is written": (
        lambda x: aten.slice_scatter.default(x, aten.neg.default(x), 2, 0, 2**63 - 1),
        ["aten.neg(%x)"],
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_writes_become_concatenations(name: str) -> None:
    function, expected = SPELLINGS[name]
    program = build_program(function, x=rows(4, 6))
    before = program.copy()
    fire(program, CanonicalizeOps())
    lines = [line for line in format_graph(program).splitlines() if "aten." in line]
    assert [line.split(" = ")[1] for line in lines] == expected
    inputs = random_inputs(before, 6)
    check_close(run_program(program, inputs), run_program(before, inputs), "exact")
    assert fire(program, CanonicalizeOps())[0] == [0]


def test_writes_to_some_of_the_tokens_are_left() -> None:
    def shifted(x: Any) -> Any:
        rest = aten.slice.Tensor(x, 1, 1, 2**63 - 1)
        return aten.slice_scatter.default(x, rest, 1, 1, 2**63 - 1)

    with pytest.raises(PassError, match="slice_scatter"):
        fire(build_program(shifted, x=rows(4, 6)), CanonicalizeOps())
