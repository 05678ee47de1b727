"""fuse-embedding."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import format_graph
from graphwright.passes.fuse_embedding import FuseEmbedding

aten = torch.ops.aten


def test_fires_for_any_integer_rows() -> None:
    def function(tokens: Any, table: Any) -> Any:
        ids = aten.add.Tensor(aten.unsqueeze.default(tokens, 0), 2)
        return aten.embedding.default(table, ids, 1)

    program = build_program(
        function, tokens=rows(dtype=torch.int64, batch=False), table=torch.rand(10, 4)
    )
    check_pass(program, FuseEmbedding(), 1, kind="exact")
    assert (
        format_graph(program)
        == """\
%tokens : i64[T] = input
%table : f32[10, 4] = weight
%unsqueeze_1 : i64[1, T] = aten.unsqueeze(%tokens, 0)
%add_1 : i64[1, T] = aten.add.Tensor(%unsqueeze_1, 2)
%embedding_1 : f32[1, T, 4] = gw.embedding(%table, %add_1)
return %embedding_1
"""
    )


def test_leaves_a_computed_table() -> None:
    program = build_program(
        lambda tokens, table: aten.embedding.default(aten.neg.default(table), tokens),
        tokens=rows(dtype=torch.int64),
        table=torch.rand(10, 4),
    )
    counts, misses = fire(program, FuseEmbedding())
    assert counts == [0]
    assert misses == ["'embedding_default': the table 'neg_default' is not a weight."]
