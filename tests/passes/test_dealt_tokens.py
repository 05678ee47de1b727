"""Which tokens schemes are chosen by, rounded by, and tested by: never the same."""

from __future__ import annotations

import pytest
import torch

from graphwright.ir.errors import PassError
from graphwright.passes.calibration import Calibration
from graphwright.passes.dealt_tokens import (
    CHOICE_TOKENS,
    HELD_OUT_TOKENS,
    DealtTokens,
    deal,
)


def numbered(count: int, length: int) -> Calibration:
    """Sequences of which each has one token, its number, again and again."""
    return Calibration(tuple(torch.full((length,), i) for i in range(count)), "from here")


def numbers(sequences: tuple[torch.Tensor, ...]) -> set[int]:
    return {int(each[0]) for each in sequences}


def check_apart(dealt: DealtTokens) -> None:
    others = dealt.choice + (dealt.rounding.sequences if dealt.rounding else ())
    assert dealt.held_out and dealt.choice
    assert not numbers(dealt.held_out) & numbers(others)


@pytest.mark.parametrize(("count", "length"), [(2, 5), (3, 500), (24, 256), (40, 512), (1000, 64)])
@pytest.mark.parametrize("rounds", [False, True])
def test_what_is_held_out_is_for_nothing_else(count: int, length: int, rounds: bool) -> None:
    dealt = deal(numbered(count, length), rounds=rounds)
    check_apart(dealt)
    assert sum(map(len, dealt.choice)) <= CHOICE_TOKENS + length
    assert sum(map(len, dealt.held_out)) <= HELD_OUT_TOKENS + length
    assert (dealt.rounding is None) == (not rounds)
    if dealt.rounding:
        assert dealt.rounding.origin == "from here"
        assert len(dealt.rounding.sequences) + len(dealt.held_out) == count


def test_as_many_as_are_asked_for_are_dealt() -> None:
    written = deal(numbered(24, 256), rounds=False)
    assert sum(map(len, written.held_out)) == HELD_OUT_TOKENS
    assert sum(map(len, written.choice)) == CHOICE_TOKENS
    text = deal(numbered(40, 512), rounds=True)
    assert sum(map(len, text.held_out)) == HELD_OUT_TOKENS
    assert [len(each) for each in text.choice] == [256] * 8
    assert text.rounding is not None and text.rounding.tokens == 16384


def test_one_sequence_is_cut_in_two() -> None:
    dealt = deal(Calibration((torch.arange(100),)), rounds=False)
    whole = torch.cat([*dealt.choice, *dealt.held_out]).sort().values
    assert torch.equal(whole, torch.arange(100))
    with pytest.raises(PassError, match="there are 3 in all: give 6144 or more"):
        deal(Calibration((torch.arange(3),)), rounds=False)
    with pytest.raises(PassError, match="one token to test schemes by is too few"):
        deal(numbered(4, 1), rounds=True)
    with pytest.raises(PassError, match="there are 0 in all"):
        deal(Calibration(()), rounds=True)
