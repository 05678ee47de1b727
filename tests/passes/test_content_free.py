"""Which values follow from the positions and the length alone, and what they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, rows

from graphwright.ir import PassError, Program
from graphwright.ir.interpreter import WeightCache
from graphwright.passes.content_free import concrete_shape, content_free_nodes, evaluate

aten = torch.ops.aten


def function(tokens: Any, positions: Any, e: Any, w: Any) -> Any:
    hidden = aten.embedding.default(e, tokens)
    ones = aten.ones_like.default(hidden, dtype=torch.int64)
    place = aten.sub.Tensor(aten.cumsum.default(ones, 0), 1)
    angle = aten.mul.Tensor(aten.unsqueeze.default(positions, 1), w)
    scaled = aten.mul.Tensor(hidden, angle)
    return aten.add.Tensor(scaled, aten.add.Tensor(place, aten.sym_size.int(hidden, 0)))


@pytest.fixture
def program() -> Program:
    return build_program(
        function,
        tokens=rows(dtype=torch.int64, batch=False),
        positions=rows(dtype=torch.int64, batch=False),
        e=torch.randn(3, 4),
        w=torch.tensor([1.0, 2.0, 3.0, 4.0]),
    )


def named(program: Program, name: str) -> Any:
    return next(node for node in program.graph.nodes if name in (node.name, str(node.target)))


def test_only_values_that_token_content_reaches_are_not_free(program: Program) -> None:
    free = content_free_nodes(program)
    bound = {str(n.target) for n in program.graph.nodes if n not in free and n.op != "output"}
    assert bound == {"tokens", "aten.embedding.default", "aten.mul.Tensor", "aten.add.Tensor"}
    assert named(program, "aten.cumsum.default") in free
    assert named(program, "aten.sym_size.int") in free


def test_values_at_a_length(program: Program) -> None:
    place = named(program, "aten.sub.Tensor")
    angle, cache = named(program, "mul_tensor"), WeightCache()
    values = evaluate(program, [place, angle], 6, cache=cache)
    assert torch.equal(values[place], torch.arange(6)[:, None].expand(6, 4))
    assert torch.equal(values[angle][5], torch.tensor([5.0, 10.0, 15.0, 20.0]))
    later = evaluate(program, [angle], 2, torch.tensor([7, 1]))[angle]
    assert torch.equal(later[:, 0], torch.tensor([7.0, 1.0]))
    assert len(cache._loaded) == 1  # the embedding was not needed


def test_a_size_is_a_number(program: Program) -> None:
    size = named(program, "aten.sym_size.int")
    assert evaluate(program, [size], 11)[size] == 11
    assert concrete_shape(program, named(program, "aten.embedding.default"), 11) == (11, 4)


def test_a_value_that_depends_on_tokens_is_refused(program: Program) -> None:
    with pytest.raises(PassError, match="depends on the input 'tokens'"):
        evaluate(program, [program.output], 3)
