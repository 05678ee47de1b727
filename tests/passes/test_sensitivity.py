"""What single weights lose: as whole programs say, as estimates say, for weights of every role."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from graphs import build_program, rows

from graphwright.ir import Level, Program
from graphwright.ir.errors import PassError
from graphwright.ir.interpreter import run_program
from graphwright.passes import sensitivity
from graphwright.passes.auto_recipe import AutoRecipe
from graphwright.passes.narrow_weights import NarrowWeights
from graphwright.passes.quantize_weights import QuantizeWeights
from graphwright.passes.recipe import Recipe
from graphwright.passes.running import run_passes
from graphwright.passes.scheme_options import decisions_of
from graphwright.passes.sensitivity import (
    ESTIMATED,
    EXACT,
    MEASURED,
    affordable,
    measure_losses,
)

aten, gw = torch.ops.aten, torch.ops.gw
ALL = AutoRecipe.parse("auto:w4g64,w4g32,w8,bf16,f32")
SEQUENCES = tuple(torch.randint(0, 32, (4, 50), generator=torch.Generator().manual_seed(1)))


def layers(tokens: Any, table: Any, up: Any, down: Any, experts: Any, head: Any) -> Any:
    x = gw.embedding.default(table, tokens)
    x = gw.linear.default(gw.linear.default(x, up, None, None, activation="silu"), down, None, x)
    chosen = aten.unsqueeze.default(aten.remainder.Scalar(tokens, 4), 1)
    routed = gw.routed_linear.default(x, chosen, experts)
    x = aten.add.Tensor(x, aten.select.int(routed, 1, 0))
    return gw.linear.default(x, head)


def program(*, loud: float = 1.0) -> Program:
    """Two matrices and experts over a residual; `loud`: how much one of them says."""
    torch.manual_seed(0)
    return build_program(
        layers,
        level=Level.FUSED,
        tokens=rows(dtype=torch.int64, batch=False),
        table=torch.randn(32, 64).bfloat16().float(),
        up=torch.randn(96, 64) * 0.1,
        down=torch.randn(64, 96) * 0.1 * loud,
        experts=torch.randn(4, 64, 64) * 0.05,
        head=torch.randn(32, 64) * 0.3,
    )


def whole(exact: Program, quant: str) -> float:
    """The loss of a program that is quantized by a recipe, run as a whole."""
    other = exact.copy()
    run_passes(other, [NarrowWeights(Recipe.parse(quant)), QuantizeWeights(Recipe.parse(quant))])
    found = []
    for tokens in SEQUENCES:
        p, q = (run_program(each, {"tokens": tokens}).double() for each in (exact, other))
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        found.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(found).mean())


def losses(
    exact: Program, auto: AutoRecipe = ALL, most_work: float = sensitivity.MOST_WORK
) -> dict[str, dict[str, tuple[float, str]]]:
    """(nats, how it is known) by weight and scheme."""
    decisions = decisions_of(exact, auto)
    found = measure_losses(exact, decisions, SEQUENCES, most_work=most_work)
    return {
        each.name: {str(scheme or "f32"): (loss.kl, loss.how) for scheme, loss in own.items()}
        for each, own in zip(decisions, found, strict=True)
    }


def test_a_fork_loses_what_the_whole_program_does() -> None:
    exact = program()
    before = exact.copy()
    found = losses(exact)
    assert set(found) == {"table", "up", "down", "experts", "head"}
    for name, own in found.items():
        groups = ["w4g32"] if name == "down" else ["w4g32", "w4g64"]  # it has 96 inputs
        for scheme in (*groups, "w8"):
            kl, how = own[scheme]
            assert how == MEASURED
            assert kl == pytest.approx(whole(exact, f"f32:^{name}$={scheme}"), rel=1e-3), name
        assert own["f32"] == (0.0, EXACT)
        assert own["w4g32"][0] > own["w8"][0] > 0
    assert found["table"]["bf16"] == (0.0, EXACT), "its numbers are bfloat16"
    assert found["up"]["bf16"][1] == MEASURED and found["up"]["bf16"][0] > 0
    inputs = {"tokens": torch.arange(32)}
    assert torch.equal(run_program(exact, inputs), run_program(before, inputs))


def test_the_weight_that_says_most_loses_most() -> None:
    quiet, loud = losses(program(loud=0.1)), losses(program(loud=8.0))
    for name in ("up", "down"):  # what feeds the loud matrix is as loud
        own, others = (
            quiet[name]["w4g32"][0],
            min(quiet[other]["w4g32"][0] for other in ("table", "experts", "head")),
        )
        assert own < 0.1 * others
        assert loud[name]["w4g32"][0] > 100 * own


def test_estimates_are_near_what_is_measured() -> None:
    exact = program()
    measured, estimated = losses(exact), losses(exact, most_work=0)
    hows = {
        (name, scheme): how for name, own in estimated.items() for scheme, (_, how) in own.items()
    }
    for name in ("up", "down", "experts"):
        assert [hows[name, scheme] for scheme in measured[name]].count(MEASURED) == 1
        for scheme, (kl, how) in estimated[name].items():
            if how == ESTIMATED:
                assert 0.5 < kl / measured[name][scheme][0] < 2, (name, scheme)
    assert hows["head", "w8"] == MEASURED, "lanes at the logits are short"


def test_large_models_take_fewer_tokens() -> None:
    exact = program()
    decisions = decisions_of(exact, ALL)
    many = tuple(SEQUENCES) * 5
    assert affordable(exact, decisions, many) == many
    few = affordable(exact, decisions, many, most_work=0)
    assert sum(map(len, few)) == 550, "512 at least"
    assert affordable(exact, decisions, SEQUENCES[:1], most_work=0) == SEQUENCES[:1]


def test_waves_give_what_one_time_through_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = program()
    together = losses(exact)
    monkeypatch.setattr(sensitivity, "_LANE_BYTES", 1)
    assert losses(exact) == together


def test_readers_of_one_weight_decide_together() -> None:
    def tied(tokens: Any, table: Any, up: Any) -> Any:
        x = gw.embedding.default(table, tokens)
        x = gw.linear.default(x, up, None, x)
        x = gw.linear.default(x, up, None, x)
        return gw.linear.default(x, table)

    torch.manual_seed(0)
    exact = build_program(
        tied, level=Level.FUSED, tokens=rows(dtype=torch.int64, batch=False),
        table=torch.randn(32, 64) * 0.3, up=torch.randn(64, 64) * 0.1,
    )  # fmt: skip
    found = losses(exact, most_work=0)
    assert set(found) == {"table", "up"}
    for name, own in found.items():
        assert own["w4g32"][1] == MEASURED, "of several readers nothing is estimated"
        assert own["w4g32"][0] == pytest.approx(whole(exact, f"f32:^{name}$=w4g32"), rel=1e-3)


def test_progress_begins_with_what_it_will_take_and_ends_whole() -> None:
    heard: list[tuple[float, str]] = []
    exact = program()
    measure_losses(
        exact, decisions_of(exact, ALL), SEQUENCES, lambda share, what: heard.append((share, what))
    )
    assert heard[0][0] == 0
    assert "losses of 5 weights: " in heard[0][1] and " lanes of 200 tokens" in heard[0][1]
    shares = [share for share, _ in heard]
    assert shares == sorted(shares) and 0.5 < shares[-1] <= 1


def test_a_scheme_that_cannot_hold_a_weight_is_an_error_with_its_name() -> None:
    with pytest.raises(PassError, match=r"'down' as f16: weights of up to .* overflow f16"):
        losses(program(loud=1e7), AutoRecipe.parse("auto:f16"))


def test_logits_that_are_not_finite_are_an_error() -> None:
    exact = program(loud=math.inf)
    with pytest.raises(PassError, match="logits are not finite, or not so when"):
        losses(exact, AutoRecipe.parse("auto:bf16"))
