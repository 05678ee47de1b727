"""Confirming token axes by evaluation, where rounding is large."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, rows

from graphwright.passes.token_axis import find_token_axes
from graphwright.passes.token_confirmation import confirm_token_axes

aten = torch.ops.aten


def test_rounding_of_long_sums_is_no_mixing() -> None:
    """Other row counts sum in another order; where large terms cancel, that shows."""
    torch.manual_seed(0)
    program = build_program(
        lambda tokens, table, w: aten.linear.default(aten.embedding.default(table, tokens), w),
        tokens=rows(dtype=torch.int64, batch=False),
        table=torch.randn(7, 4096),
        w=torch.randn(250, 4096),
    )
    assert confirm_token_axes(program, find_token_axes(program)) == []


def test_conditions_and_integers_are_compared_exactly() -> None:
    def function(tokens: Any, x: Any) -> Any:
        late = aten.bitwise_not.default(aten.gt.Scalar(aten.mul.Tensor(tokens, 3), 4))
        return aten.where.ScalarOther(late, x, 0)

    program = build_program(function, tokens=rows(dtype=torch.int64, batch=False), x=torch.randn(1))
    assert confirm_token_axes(program, find_token_axes(program)) == []
