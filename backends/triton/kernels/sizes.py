"""Sizes of blocks and grids."""

from __future__ import annotations

__all__ = ["next_power_of_two", "quotient_up"]


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is >= n >= 1."""
    assert n >= 1
    return 1 << (n - 1).bit_length()


def quotient_up(n: int, block: int) -> int:
    """How many blocks of `block` cover n."""
    return -(-n // block)
