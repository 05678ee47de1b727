"""The mask algebra: text and back, what is visible, how far back a query can read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphwright.ir.errors import PassError
from graphwright.ir.masks import Mask

LENGTH = 60
MASKS = st.builds(
    Mask,
    window=st.none() | st.integers(1, 40),
    first=st.just(0),
    chunk=st.none() | st.integers(1, 40),
) | st.builds(Mask, window=st.integers(1, 40), first=st.integers(1, 5))


@given(MASKS)
def test_text_round_trip(mask: Mask) -> None:
    assert Mask.parse(str(mask)) == mask


@given(MASKS, st.integers(1, 60))
def test_nothing_beyond_the_span_is_visible(mask: Mask, length: int) -> None:
    positions = torch.arange(length)
    visible = mask.visible(positions[:, None], positions[None, :])
    for query in range(length):
        for key in range(length):
            want = key <= query
            if mask.window is not None:
                want = want and (query - key < mask.window or key < mask.first)
            if mask.chunk is not None:
                want = want and query // mask.chunk == key // mask.chunk
            assert bool(visible[query, key]) == want
            if want and mask.span is not None:
                assert query - key < mask.span
            if want and mask.tail is not None:
                assert query - key < mask.tail or key < mask.first


@given(MASKS, MASKS)
def test_what_two_masks_have_in_common(one: Mask, other: Mask) -> None:
    positions = torch.arange(LENGTH)
    query, key = positions[:, None], positions[None, :]
    both = one.within(other)
    assert both == other.within(one)
    if both is not None:
        want = one.visible(query, key) & other.visible(query, key)
        assert torch.equal(both.visible(query, key), want)
        assert Mask.parse(str(both)) == both
    if one == Mask() or one == other:
        assert both == other


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("window(9)", "window(4)", "window(4)"),
        ("window(9)", "(window(4) | first(2))", None),  # first ones in the window of 9, and others
        ("(window(9) | first(2))", "(window(4) | first(2))", "(window(4) | first(2))"),
        ("(window(9) | first(3))", "(window(4) | first(2))", "(window(4) | first(2))"),
        ("(window(9) | first(3))", "window(4)", "window(4)"),
        ("chunk(8)", "chunk(4)", "chunk(4)"),
        ("chunk(8)", "chunk(3)", None),
        ("chunk(8)", "window(3)", "window(3) & chunk(8)"),
        ("chunk(8)", "(window(3) | first(1))", None),
    ],
)
def test_commons_by_example(one: str, other: str, both: str | None) -> None:
    found = Mask.parse(f"causal & {one}").within(Mask.parse(f"causal & {other}"))
    assert (found and str(found)) == (both and f"causal & {both}")


@pytest.mark.parametrize("text", ["", "full", "causal & window(x)", "causal &", "window(3)"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(PassError, match="is not a mask"):
        Mask.parse(text)
