"""Chains of layout ops: traced to their start, and replaced by shorter ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, random_inputs, rows

from graphwright.ir import format_graph
from graphwright.ir.interpreter import run_program
from graphwright.passes.layout_chains import collapse_chains, trace

aten = torch.ops.aten
reshape, permute = aten.reshape.default, aten.permute.default


def sizes(axes: list[list[Any]]) -> list[list[Any]]:
    return [[atom.size if isinstance(atom.size, int) else "T" for atom in axis] for axis in axes]


def test_expanded_heads_are_repeated_atoms() -> None:
    def function(x: Any) -> Any:
        x = permute(reshape(x, [1, -1, 2, 8]), [0, 2, 1, 3])
        x = aten.expand.default(aten.unsqueeze.default(x, 2), [-1, -1, 3, -1, -1])
        return reshape(x, [1, 6, -1, 8])

    program = build_program(function, x=rows(16))
    chain = trace(program.output)
    assert chain.base.name == "x" and chain.length == 5
    assert sizes(chain.axes) == [[], [2, 3], ["T"], [8]]
    assert sizes(chain.base_axes) == [[], ["T"], [2, 8]]
    assert [atom.size for atom in chain.repeated] == [3]
    assert trace(program.output, repeats=False).length == 1


CHAINS = {
    "there and back": (lambda x: permute(permute(x, [0, 2, 1]), [0, 2, 1]), "return %x\n"),
    "around a head": (
        lambda x: reshape(permute(permute(reshape(x, [1, -1, 4, 6]), [0, 2, 1, 3]),
                                  [0, 2, 1, 3]), [1, -1, 24]),
        "return %x\n",
    ),
    "two reshapes": (
        lambda x: reshape(reshape(x, [-1, 24]), [1, -1, 4, 6]),
        "%reshape_1 : f32[1, T, 4, 6] = aten.reshape(%x, [1, -1, 4, 6])\nreturn %reshape_1\n",
    ),
    "two permutes": (
        lambda x: permute(permute(reshape(x, [1, -1, 4, 6]), [0, 3, 2, 1]), [0, 3, 1, 2]),
        "%reshape_1 : f32[T, 4, 6] = aten.reshape(%x, [-1, 4, 6])\n"
        "%permute_1 : f32[T, 6, 4] = aten.permute(%reshape_1, [0, 2, 1])\n"
        "%reshape_2 : f32[1, T, 6, 4] = aten.reshape(%permute_1, [1, -1, 6, 4])\n"
        "return %reshape_2\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_shorter_chains(name: str) -> None:
    function: Any
    function, expected = CHAINS[name]
    program = build_program(lambda x: aten.neg.default(function(x)), x=rows(24))
    before = program.copy()
    changed = collapse_chains(program)
    program.clean()
    assert collapse_chains(program) == 0
    got = "\n".join(format_graph(program).splitlines()[1:-2])
    wanted = expected.replace("return %x\n", "").rsplit("return", 1)[0].rstrip("\n")
    assert (got == wanted) == bool(changed), got
    inputs = random_inputs(before, 5)
    assert torch.equal(run_program(program, inputs), run_program(before, inputs))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: permute(reshape(x, [1, -1, 4, 6]), [0, 2, 1, 3]),
        lambda x: reshape(permute(x, [0, 2, 1]), [1, -1, 24]),
        lambda x: aten.expand.default(aten.unsqueeze.default(x, 2), [-1, -1, 2, -1]),
    ],
)
def test_chains_that_have_no_shorter_form_are_left(function: Any) -> None:
    program = build_program(lambda x: aten.neg.default(function(x)), x=rows(24))
    text = format_graph(program)
    assert collapse_chains(program) == 0
    assert format_graph(program) == text
