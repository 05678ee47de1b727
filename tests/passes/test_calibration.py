"""Calibrated quantize-weights: shared weights, experts, and what the log says."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, rows

from graphwright.ir import Level, Program
from graphwright.ir.interpreter import run_program
from graphwright.ir.schemes import quantize_weight
from graphwright.passes.calibration import Calibration
from graphwright.passes.quantize_weights import QuantizeWeights
from graphwright.passes.recipe import Recipe
from graphwright.passes.running import run_passes

aten, gw = torch.ops.aten, torch.ops.gw


def tied(tokens: Any, table: Any, up: Any, b: Any, down: Any) -> Any:
    """A table read by id and as a head, and a matrix that is multiplied by twice."""
    x = gw.embedding.default(table, tokens)
    for _ in range(2):
        y = gw.linear.default(x, up, b, activation="silu")
        x = gw.linear.default(y, down, None, x)
    return gw.linear.default(x, table)


def tied_program() -> Program:
    torch.manual_seed(0)
    basis = torch.randn(8, 32)  # rows that have few directions, so that inputs are correlated
    return build_program(
        tied,
        level=Level.FUSED,
        tokens=rows(dtype=torch.int64, batch=False),
        table=torch.randn(32, 8) @ basis * 0.3,
        up=torch.randn(64, 32) * 0.2,
        b=torch.randn(64),
        down=torch.randn(32, 64) * 0.2,
    )


def sequences(count: int = 3, length: int = 40, vocabulary: int = 32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(0, vocabulary, (count, length), generator=generator))


def quantized(
    program: Program, quant: str, calibration: tuple[torch.Tensor, ...] | None
) -> Program:
    """A copy of `program` with integer weights."""
    result = program.copy()
    given = None if calibration is None else Calibration(calibration)
    run_passes(result, [QuantizeWeights(Recipe.parse(quant), given)])
    return result


def error(program: Program, exact: Program) -> float:
    """Of the results for every token."""
    inputs = {"tokens": torch.arange(32)}
    return float((run_program(program, inputs) - run_program(exact, inputs)).square().mean())


def test_shared_weights_have_one_integer_form_and_results_are_nearer() -> None:
    exact = tied_program()
    plain, calibrated = (quantized(exact, "w4g32", each) for each in (None, sequences()))
    assert error(calibrated, exact) < 0.8 * error(plain, exact)
    names = [list(each.weights) for each in (plain, calibrated)]
    assert names[0] == names[1]
    assert calibrated.weights["up_w4g32"].describe() == "calibrated_quantize_weight(constant)"
    assert calibrated.log[-1].notes == [
        "rounded by the inputs that 120 tokens in 3 sequences give to 3 weights"
    ]
    assert plain.log[-1].notes == []
    again = quantized(exact, "w4g32", sequences())
    for name in names[0]:
        first, second, third = (calibrated.weights[n].load() for n in (name,) * 3)
        assert torch.equal(first, again.weights[name].load())
        assert torch.equal(first, second) and torch.equal(first, third), "nothing is dropped"


def test_a_table_that_is_only_read_by_id_is_rounded_to_nearest() -> None:
    exact = tied_program()
    program = quantized(exact, "w4g32:head=f32", sequences())
    values, scale = quantize_weight(exact.weights["table"].load(), "w4g32")
    assert torch.equal(program.weights["table_w4g32"].load(), values)
    assert torch.equal(program.weights["table_scale"].load(), scale)


def test_experts_are_rounded_by_their_own_tokens() -> None:
    def routed(tokens: Any, table: Any, w: Any, b: Any) -> Any:
        experts = aten.unsqueeze.default(aten.remainder.Scalar(tokens, 4), 1)
        return gw.routed_linear.default(gw.embedding.default(table, tokens), experts, w, b)

    torch.manual_seed(0)
    exact = build_program(
        routed,
        level=Level.FUSED,
        tokens=rows(dtype=torch.int64, batch=False),
        table=torch.randn(32, 8) @ torch.randn(8, 64),
        w=torch.randn(4, 6, 64),
        b=torch.randn(4, 6),
    )
    hit = tuple(each - each % 4 + (each % 3) for each in sequences())  # never the last expert
    plain = quantized(exact, "w4g32:embed=f32", None)
    program = quantized(exact, "w4g32:embed=f32", hit)
    assert program.log[-1].notes == [
        "rounded by the inputs that 120 tokens in 3 sequences give to 1 weights; no token came to "
        "1 of 4 matrices of experts"
    ]
    inputs = {"tokens": torch.arange(32)}
    want = run_program(exact, inputs)
    lost = [(run_program(each, inputs) - want).square().sum((1, 2)) for each in (plain, program)]
    reached = torch.arange(32) % 4 < 3
    assert float(lost[1][reached].sum()) < 0.8 * float(lost[0][reached].sum())
    assert float(lost[1][~reached].sum()) < 1.3 * float(lost[0][~reached].sum())
