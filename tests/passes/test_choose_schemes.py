"""Schemes that are chosen: within what budget, by which weight, the same ones every time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from graphs import build_program, rows

from graphwright.ir import Level, Program
from graphwright.ir.errors import PassError
from graphwright.ir.schemes import Scheme, quantize_weight
from graphwright.ir.stored_codes import from_codes
from graphwright.ir.weights import ConstantTensor, Expression
from graphwright.passes.auto_recipe import AutoRecipe, Budget
from graphwright.passes.base import PassContext
from graphwright.passes.calibration import Calibration
from graphwright.passes.choose_schemes import ChooseSchemes
from graphwright.passes.dealt_tokens import deal
from graphwright.passes.divergence import Reference
from graphwright.passes.quantized_part import QuantizedPart
from graphwright.passes.running import run_passes
from graphwright.passes.scheme_options import (
    decisions_of,
    fixed_bytes,
    packed_bytes,
    read_bytes,
    stored_bytes,
)
from graphwright.passes.self_written_tokens import SelfWritten

aten, gw = torch.ops.aten, torch.ops.gw
TOKENS = Calibration(
    tuple(torch.randint(0, 32, (12, 100), generator=torch.Generator().manual_seed(1)))
)


def decoder(tokens: Any, table: Any, quiet: Any, loud: Any, norm: Any, head: Any) -> Any:
    """Two layers of equal shape, of which one says forty times as much."""
    x = gw.embedding.default(table, tokens)
    for matrix in (quiet, loud):
        y = gw.rms_norm.default(x, norm, eps=1e-6)
        x = gw.linear.default(y, matrix, None, x)
    return gw.linear.default(gw.rms_norm.default(x, norm, eps=1e-6), head)


def program() -> Program:
    torch.manual_seed(0)
    return build_program(
        decoder,
        level=Level.FUSED,
        tokens=rows(dtype=torch.int64, batch=False),
        table=torch.randn(32, 128),
        quiet=torch.randn(128, 128) * 0.005,
        loud=torch.randn(128, 128) * 0.2,
        norm=torch.ones(128),
        head=torch.randn(32, 128) * 0.2,
    )


def chosen(
    exact: Program,
    quant: str = "auto",
    *,
    tokens: Any = TOKENS,
    rounds: bool = False,
    **budget: Any,
) -> Program:
    """A copy of `exact` with chosen schemes."""
    result = exact.copy()
    step = ChooseSchemes(AutoRecipe.parse(quant), Budget(**budget), tokens, rounds)
    run_passes(result, [step])
    assert result.choice is not None
    return result


def schemes(result: Program) -> dict[str, str]:
    assert result.choice is not None
    return {each.name: each.scheme for each in result.choice.weights}


def bits(scheme: str) -> float:
    return {"f32": 32.0, "bf16": 16.0}.get(scheme) or float(scheme[1])


def test_the_weight_that_matters_gets_the_bits() -> None:
    result = chosen(program(), bits=6.8)
    found = schemes(result)
    assert bits(found["loud"]) > bits(found["quiet"])
    assert result.choice is not None and result.choice.bits <= 6.8
    weights = {each.name: each for each in result.choice.weights}
    assert weights["head"].roles == ("head",) and weights["table"].roles == ("embedding",)
    assert {node.target for node in result.graph.nodes} >= {
        gw.quantized_linear.default, gw.quantized_embedding.default,
    }  # fmt: skip
    values, _ = quantize_weight(program().weights["quiet"].load(), found["quiet"])
    assert torch.equal(result.weights[f"quiet_{found['quiet']}"].load(), values), "to nearest"


@pytest.mark.parametrize("most", [1e-4, 1e-3, 0.01, 0.1])
@pytest.mark.parametrize("rounds", [False, True])
def test_what_is_lost_on_held_out_tokens_is_within_the_budget(most: float, rounds: bool) -> None:
    exact = program()
    result = chosen(exact, max_kl=most, rounds=rounds)
    choice = result.choice
    assert choice is not None
    found = Reference(exact, deal(TOKENS, rounds=rounds).held_out).compare(result)
    assert found.mean == pytest.approx(choice.measured, rel=1e-3)
    assert found.mean + 2 * found.error <= most
    assert choice.held_out == found.tokens
    assert [each.accepted for each in choice.trials].count(True) >= 1
    assert choice.trials[-1].accepted or len(choice.trials) > 1


def test_more_that_may_be_lost_is_less_to_read() -> None:
    exact = program()
    read = []
    for most in (1e-4, 1e-3, 1e-2, 1e-1):
        choice = chosen(exact, max_kl=most).choice
        assert choice is not None
        read.append(choice.read)
    assert read == sorted(read, reverse=True) and read[0] > 1.5 * read[-1]


def test_nothing_may_be_lost() -> None:
    exact = program()
    with pytest.raises(PassError, match=r"max_kl=0 cannot be met: .* lose \S+ ± \S+ nats") as error:
        chosen(exact, max_kl=0.0)
    assert "with 16.00 bits a weight" in str(error.value) and "f32 loses nothing" in str(
        error.value
    )
    same = chosen(exact, "auto:w8,f32", max_kl=0.0)
    assert set(schemes(same).values()) == {"f32"}
    assert same.choice is not None and same.choice.measured == 0


def test_too_small_is_a_sentence_with_what_there_is() -> None:
    with pytest.raises(PassError, match=r"bits=3 cannot be met: .* give 4.12 bits a weight at lea"):
        chosen(program(), bits=3)
    with pytest.raises(PassError, match=r"max_size=1000 cannot be met: .* weights take \d+ bytes"):
        chosen(program(), max_size=1000)


def test_all_weights_are_within_the_size() -> None:
    exact = program()
    decisions = decisions_of(exact, AutoRecipe.parse("auto"))
    rest = fixed_bytes(exact, decisions)
    assert rest == 512, "the norm"
    for most in (24_000, 40_000, 60_000):
        found = schemes(chosen(exact, max_size=most))
        parsed = {each.name: each for each in decisions}
        size = rest + sum(
            packed_bytes(parsed[name].weight.shape, next(
                each for each in parsed[name].schemes if str(each or "f32") == scheme
            ))
            for name, scheme in found.items()
        )  # fmt: skip
        assert 0.7 * most < size <= most


def test_the_same_inputs_give_the_same_choice() -> None:
    first, second = (
        json.dumps(chosen(program(), max_kl=0.003, tokens=SelfWritten(8, 100)).choice.as_json())  # type: ignore[union-attr]
        for _ in range(2)
    )
    assert first == second
    record = json.loads(first)
    assert record["origin"] == "written by the model at temperature 1.3 with seed 0"
    assert record["budget"] == "at most 0.003 nats a token"


def test_what_the_recipe_says_is_kept_and_counted() -> None:
    result = chosen(program(), "auto:w4g32,w8,quiet=w8,head=f32", bits=14)
    found = schemes(result)
    assert (found["quiet"], found["head"]) == ("w8", "f32")
    assert result.choice is not None
    fixed = {each.name for each in result.choice.weights if each.fixed}
    assert fixed == {"quiet", "head"}
    with pytest.raises(PassError, match=r"'donw' in recipe .* is in the name of no weight"):
        chosen(program(), "auto:donw=w8", bits=8)


def test_named_candidates_are_the_only_ones() -> None:
    found = schemes(chosen(program(), "auto:w8g64,bf16", bits=10))
    assert set(found.values()) <= {"w8g64", "bf16"}


def test_the_log_says_what_was_chosen_and_the_graph_is_left_alone_without_auto() -> None:
    exact = program()
    result = chosen(exact, bits=5)
    notes = result.log[-1].notes
    assert notes[0].startswith("5.00 bits") and "at most 5 bits a weight: " in notes[0]
    assert notes[1].startswith("KL divergence ") and " was predicted" in notes[1]
    assert result.log[-1].rewrites == 4
    plain = exact.copy()
    run_passes(plain, [ChooseSchemes()])
    assert plain.log[-1].rewrites == 0 and plain.choice is None
    context = PassContext(fuel=0)
    step = ChooseSchemes(AutoRecipe.parse("auto"), Budget(bits=5), TOKENS)
    run_passes(plain, [step], context)
    assert plain.log[-1].rewrites == 0


def test_experts_and_tables_are_read_in_part() -> None:
    def routed(tokens: Any, table: Any, w: Any) -> Any:
        chosen = aten.unsqueeze.default(aten.remainder.Scalar(tokens, 8), 1)
        x = gw.routed_linear.default(gw.embedding.default(table, tokens), chosen, w)
        return aten.select.int(x, 1, 0)

    exact = build_program(
        routed, level=Level.FUSED, tokens=rows(dtype=torch.int64, batch=False),
        table=torch.randn(32, 64), w=torch.randn(8, 32, 64),
    )  # fmt: skip
    found = {each.name: each for each in decisions_of(exact, AutoRecipe.parse("auto"))}
    w8 = Scheme(8)
    assert stored_bytes((8, 32, 64), w8) == 8 * 32 * (64 + 4)
    assert read_bytes(found["w"], w8) == 32 * (64 + 4)
    assert read_bytes(found["table"], w8) == 64 + 4


def test_integers_of_a_checkpoint_are_a_candidate_and_kept() -> None:
    """Stored with zero points, which no default candidate has."""
    exact = program()
    weight = torch.randn(128, 128) * 0.2
    codes, scale, zero = quantize_weight(weight, "w4g128z")
    constants = (ConstantTensor.of(codes.to(torch.uint8)), ConstantTensor.of(scale.float()),
                 ConstantTensor.of(zero))  # fmt: skip
    exact.weights["loud"] = Expression.of(from_codes, *constants, bits=4)
    decisions = {each.name: each for each in decisions_of(exact, AutoRecipe.parse("auto"))}
    assert "w4g128z" in map(str, decisions["loud"].schemes)
    assert "w4g128z" not in map(str, decisions["quiet"].schemes)
    named = decisions_of(exact, AutoRecipe.parse("auto:w4g32,w8"))
    assert {str(s) for each in named for s in each.schemes} == {"w4g32", "w8"}
    result = chosen(exact, bits=4.3)
    assert schemes(result)["loud"] == "w4g128z"
    part = result.weights["loud_w4g128z"]
    assert isinstance(part, QuantizedPart) and part.quantization.stored is not None
    assert torch.equal(part.load(), codes)
    assert "1 weights keep the integers that the checkpoint stores" in result.log[-1].notes
    assert result.choice is not None
    losses = {
        o.scheme: o.kl
        for each in result.choice.weights
        if each.name == "loud"
        for o in each.options
    }
    assert losses["w4g128z"] < 0.2 * losses["w4g128"], "its inputs alone are rounded"
