"""Which elements of two sequences are the same one, in order: the alignment under a diff.

Patience diff by Bram Cohen: elements that are unique on both sides are aligned first, by the
longest run in the order of both; what lies between is aligned again. Where nothing is unique,
difflib's longest blocks are taken.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

__all__ = ["align"]

_QUADRATIC = 4_000_000  # pairs of elements up to which difflib may compare


def align(old: Sequence[Sequence[int]], new: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Pairs (index in old, index in new), increasing in both.

    Each argument is a list of keys for the same elements, from the strictest kind of key to the
    loosest: elements are aligned by the first, the gaps between them by the next, and so on.
    """
    pairs: list[tuple[int, int]] = []
    for strict_old, strict_new in zip(old, new, strict=True):
        ends = [*pairs, (len(strict_old), len(strict_new))]
        before = (-1, -1)
        found = []
        for end in ends:
            found += _between(
                strict_old, strict_new, (before[0] + 1, end[0]), (before[1] + 1, end[1])
            )
            before = end
        pairs = sorted(pairs + found)
    return pairs


def _between(
    old: Sequence[int], new: Sequence[int], a: tuple[int, int], b: tuple[int, int]
) -> list[tuple[int, int]]:
    """The pairs of old[a[0]:a[1]] and new[b[0]:b[1]]."""
    (first, end), (start, stop) = a, b
    head: list[tuple[int, int]] = []
    while first < end and start < stop and old[first] == new[start]:
        head.append((first, start))
        first, start = first + 1, start + 1
    tail: list[tuple[int, int]] = []
    while first < end and start < stop and old[end - 1] == new[stop - 1]:
        end, stop = end - 1, stop - 1
        tail.append((end, stop))
    middle: list[tuple[int, int]] = []
    if first < end and start < stop:
        anchors = _anchors(old, new, (first, end), (start, stop))
        if anchors:
            before = (first - 1, start - 1)
            for anchor in [*anchors, (end, stop)]:
                middle += _between(old, new, (before[0] + 1, anchor[0]), (before[1] + 1, anchor[1]))
                before = anchor
            middle += anchors
        elif (end - first) * (stop - start) <= _QUADRATIC:
            matcher = SequenceMatcher(None, old[first:end], new[start:stop], autojunk=False)
            middle = [
                (first + block.a + i, start + block.b + i)
                for block in matcher.get_matching_blocks()
                for i in range(block.size)
            ]
    return head + middle + tail


def _anchors(
    old: Sequence[int], new: Sequence[int], a: tuple[int, int], b: tuple[int, int]
) -> list[tuple[int, int]]:
    """The longest increasing run of elements that are unique in both ranges."""
    once = Counter(new[b[0] : b[1]])
    places = {key: b[0] + i for i, key in enumerate(new[b[0] : b[1]]) if once[key] == 1}
    counted = Counter(old[a[0] : a[1]])
    pairs = [(i, places[old[i]]) for i in range(*a) if counted[old[i]] == 1 and old[i] in places]
    last: list[int] = []  # the smallest end of an increasing run of each length
    holders: list[int] = []  # which pair that is
    previous: list[int] = []
    for number, (_, place) in enumerate(pairs):
        length = bisect_left(last, place)
        previous.append(holders[length - 1] if length else -1)
        last[length : length + 1] = [place]
        holders[length : length + 1] = [number]
    found = []
    number = holders[-1] if holders else -1
    while number >= 0:
        found.append(pairs[number])
        number = previous[number]
    return found[::-1]
