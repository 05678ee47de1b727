"""Integers of a few bits, packed into the words of a stored tensor."""

from __future__ import annotations

import torch

__all__ = ["unpack", "unpack_columns", "unpack_interleaved"]

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of the eight values of a word: the nibble of each


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [..., W] -> uint8 [..., W * 32 / bits]: a stream of values, lowest bits first.

    bits: 2, 3, 4 or 8. Values of 3 bits go on from one word into the next.
    """
    data = words.contiguous().view(torch.uint8)
    if bits == 8:
        return data
    step = bits if bits in (2, 4) else 1
    shifts = torch.arange(0, 8, step, dtype=torch.uint8, device=words.device)
    fields = (data[..., None] >> shifts) & ((1 << step) - 1)
    if step == bits:
        return fields.flatten(-2)
    planes = fields.reshape(*words.shape[:-1], -1, bits)
    return sum(planes[..., i] << i for i in range(1, bits)) | planes[..., 0]


def unpack_columns(words: torch.Tensor, bits: int, count: int | None = None) -> torch.Tensor:
    """int32 [W, C] -> uint8 [C, count]: the stream of each column; count: all without it."""
    return unpack(words.t(), bits)[:, :count]


def unpack_interleaved(words: torch.Tensor) -> torch.Tensor:
    """int32 [R, W] -> uint8 [W * 8, R]: four bits a value, the eight of a word in AWQ's order."""
    values = unpack(words, 4).view(*words.shape, 8)
    order = torch.tensor(_AWQ_PLACES, device=words.device)
    return values.index_select(-1, order).flatten(1).t().contiguous()
