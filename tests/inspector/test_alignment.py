"""Aligning two sequences by keys, the strictest first."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from graphwright.inspector.alignment import align

_LISTS = st.lists(st.integers(0, 6), max_size=14)


def test_unique_elements_are_found_again_around_what_repeats() -> None:
    old = [1, 7, 7, 2, 7, 3]
    new = [1, 7, 2, 7, 7, 3]
    assert align([old], [new]) == [(0, 0), (1, 1), (3, 2), (4, 4), (5, 5)]


def test_a_looser_key_fills_the_gaps_that_a_stricter_one_left() -> None:
    strict_old, strict_new = [1, 2, 3, 4], [1, 9, 8, 4]
    loose_old, loose_new = [0, 5, 6, 0], [0, 5, 7, 0]
    assert align([strict_old], [strict_new]) == [(0, 0), (3, 3)]
    assert align([strict_old, loose_old], [strict_new, loose_new]) == [(0, 0), (1, 1), (3, 3)]


@given(_LISTS, _LISTS)
def test_pairs_are_equal_and_in_the_order_of_both(old: list[int], new: list[int]) -> None:
    pairs = align([old], [new])
    assert all(old[i] == new[j] for i, j in pairs)
    assert all(a < c and b < d for (a, b), (c, d) in pairwise(pairs))


@given(_LISTS)
def test_a_sequence_is_all_of_itself(same: list[int]) -> None:
    assert align([same], [same]) == [(i, i) for i in range(len(same))]
