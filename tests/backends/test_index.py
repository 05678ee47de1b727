"""Index expressions of moved elements, by arithmetic that rounds quotients to zero, as C does."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphwright.backends.regions.index import Index, Variable, flatten, unflatten

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3)


class Truncating:
    """As C and Triton divide."""

    def constant(self, value: int) -> int:
        return value

    def divide(self, value: int, divisor: int) -> int:
        return int(value / divisor)

    def modulo(self, value: int, divisor: int) -> int:
        return int(math.fmod(value, divisor))


def cut_anew(count: int, first: int) -> list[int]:
    """A shape of `count` elements, whose last axis is about `first` long."""
    last = next(size for size in range(min(first, count), count + 1) if count % size == 0)
    return [count // last, last]


@settings(deadline=None)
@given(SHAPES, st.lists(st.booleans(), min_size=3, max_size=3), st.integers(1, 6))
@example([3, 2], [True, False, False], 3)
def test_flipped_elements_of_another_shape_are_found(
    shape: list[int], flips: list[bool], first: int
) -> None:
    """Element by element of the new shape: where it lies in the memory of the old one."""
    axes = [axis for axis, flipped in enumerate(flips[: len(shape)]) if flipped]
    count = math.prod(shape)
    other = cut_anew(count, first)
    want = np.flip(np.arange(count).reshape(shape), tuple(axes)).reshape(other)
    for place in itertools.product(*map(range, other)):
        own = [
            Index(frozenset({(Variable(n, 0, size - 1, value), 1)}))
            for n, (size, value) in enumerate(zip(other, place, strict=True))
        ]
        old = unflatten(flatten(own, other), shape)
        old = [
            each * -1 + (size - 1) if axis in axes else each
            for axis, (each, size) in enumerate(zip(old, shape, strict=True))
        ]
        position = flatten(old, shape)
        assert position.expr(Truncating()) == want[place]
        again = [each.expr(Truncating()) for each in unflatten(position, cut_anew(count, 2))]
        assert np.ravel_multi_index(again, cut_anew(count, 2)) == want[place]
