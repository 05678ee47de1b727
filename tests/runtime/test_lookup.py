"""Where the end of a text stood before, against a search of the whole text at each token."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.runtime.lookup import Lookup


def search(tokens: list[int], prompt: int) -> tuple[int, int]:
    """(place, length) at the end of `tokens`, by the rule that Lookup's docstring gives; so many
    were there at the start."""
    place = length = 0
    for end in range(prompt, len(tokens) + 1):
        if end > prompt and length and tokens[place] == tokens[end - 1]:
            place, length = place + 1, length + 1
            continue
        place = length = 0
        for n in (3, 2):
            last = tokens[end - n : end] if end >= n else None
            found = [at for at in range(end - n) if tokens[at : at + n] == last]
            if found:
                place, length = found[-1] + n, n
                break
    return place, length


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=20),
    st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=8),
    st.integers(1, 9),
)
def test_a_place_is_the_one_that_a_search_finds(
    prompt: list[int], pieces: list[list[int]], count: int
) -> None:
    """However many tokens come at a time."""
    tokens = list(prompt)
    lookup = Lookup(tokens)
    for piece in [[], *pieces]:
        tokens += piece
        lookup.follow()
        assert (lookup.place, lookup.length) == search(tokens, len(prompt))
        if not lookup.length:
            continue
        assert lookup.length <= lookup.place < len(tokens)
        length = lookup.length
        before = tokens[lookup.place - length : lookup.place]
        assert before == tokens[len(tokens) - length :]
        text = list(tokens)
        for _ in range(count):
            text.append(text[lookup.place + len(text) - len(tokens)])
        assert lookup.guess(count) == text[len(tokens) :]


def test_longer_ends_come_first_and_of_equal_ones_the_newest() -> None:
    tokens = [1, 2, 3, 4, 9, 2, 3, 5, 8, 2, 3, 6, 1, 2, 3]
    lookup = Lookup(tokens)
    assert (lookup.place, lookup.length) == (3, 3) and lookup.guess(2) == [4, 9]
    tokens += [7, 2, 3]
    lookup.follow()
    assert (lookup.place, lookup.length) == (15, 2), "the newest of 2, 3"


def test_a_place_is_followed_though_a_newer_one_looks_alike() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 8]
    lookup = Lookup(tokens)
    tokens += [1, 2, 3, 4, 5]
    lookup.follow()
    assert (lookup.place, lookup.length) == (5, 5) and lookup.guess(1) == [6]
    tokens.append(8)
    lookup.follow()
    assert lookup.length == 3 and lookup.guess(1) == [1], "it was the other one after all"


def test_a_text_that_repeats_itself_goes_on_so() -> None:
    tokens = [4, 7, 7, 7]
    lookup = Lookup(tokens)
    assert lookup.guess(5) == [7] * 5
    tokens += [1, 2, 3, 1, 2, 3]
    lookup.follow()
    assert lookup.guess(7) == [1, 2, 3, 1, 2, 3, 1]
