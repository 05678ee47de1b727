"""The mask algebra: text and back, what is visible, how far back a query can read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphwright.ir.errors import PassError
from graphwright.ir.masks import Mask

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


@pytest.mark.parametrize("text", ["", "full", "causal & window(x)", "causal &", "window(3)"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(PassError, match="is not a mask"):
        Mask.parse(text)
