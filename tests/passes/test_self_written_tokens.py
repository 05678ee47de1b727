"""Tokens that a program writes itself: from its own distribution, the same ones every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, rows

from graphwright.ir import Level, Program
from graphwright.ir.errors import PassError
from graphwright.passes.calibration import Calibration
from graphwright.passes.quantize_weights import QuantizeWeights
from graphwright.passes.recipe import Recipe
from graphwright.passes.running import run_passes
from graphwright.passes.self_written_tokens import SelfWritten

gw = torch.ops.gw
VOCABULARY = 32


def chain(table: torch.Tensor) -> Program:
    """A program whose logits for the next token are the current one's row of `table`."""

    def build(tokens: Any, table: Any, head: Any) -> Any:
        return gw.linear.default(gw.embedding.default(table, tokens), head)

    return build_program(
        build,
        level=Level.FUSED,
        tokens=rows(dtype=torch.int64, batch=False),
        table=table,
        head=torch.eye(VOCABULARY),
    )


def successors(step: int = 1, logit: float = 100.0) -> torch.Tensor:
    """Logits by which token i + step follows token i."""
    return torch.eye(VOCABULARY).roll(step, dims=1) * logit


def test_each_token_follows_from_the_one_before_it() -> None:
    found = SelfWritten(3, 40, begin=5).write(chain(successors()))
    want = [(5 + i) % VOCABULARY for i in range(40)]
    assert [each.tolist() for each in found.sequences] == [want] * 3
    assert str(found) == (
        "120 tokens in 3 sequences written by the model at temperature 1.3 with seed 0"
    )


def test_without_a_bos_sequences_begin_with_different_tokens() -> None:
    found = SelfWritten(8, 4).write(chain(successors()))
    assert len({int(each[0]) for each in found.sequences}) > 4
    assert all(int(each[3]) == (int(each[0]) + 3) % VOCABULARY for each in found.sequences)


def test_tokens_have_the_shares_that_the_temperature_gives_them() -> None:
    even = torch.zeros(VOCABULARY, VOCABULARY)
    even[:, 0] = 2.0
    for temperature in (0.5, 2.0):
        found = SelfWritten(64, 64, begin=0, temperature=temperature).write(chain(even))
        share = float((torch.stack(found.sequences)[:, 1:] == 0).double().mean())
        weight = float(torch.tensor(2.0 / temperature).exp())
        assert share == pytest.approx(weight / (weight + VOCABULARY - 1), abs=0.03)


def test_a_seed_gives_the_same_sequences_again_and_another_seed_others() -> None:
    torch.manual_seed(0)
    program = chain(torch.randn(VOCABULARY, VOCABULARY))
    digests = [SelfWritten(4, 16, seed=seed).write(program).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(PassError, match=r"logits are not finite.*give it a text"):
        SelfWritten(2, 4, begin=0).write(chain(torch.full((VOCABULARY, VOCABULARY), torch.nan)))


def test_a_program_is_rounded_by_what_it_wrote() -> None:
    torch.manual_seed(0)
    exact = chain(torch.randn(VOCABULARY, VOCABULARY))
    writing = SelfWritten(4, 16, begin=1)
    copies = [exact.copy(), exact.copy()]
    pairs: list[tuple[Program, Calibration | SelfWritten]] = [
        (copies[0], writing),
        (copies[1], writing.write(exact)),
    ]
    for copy, given in pairs:
        run_passes(copy, [QuantizeWeights(Recipe.parse("w4g32"), given)])
    for name in copies[0].weights:
        assert torch.equal(*(copy.weights[name].load() for copy in copies))
    assert copies[0].log[-1].notes == [f"rounded by the inputs that {writing} give to 1 weights"]
