"""Rows of a table by token id: stored as they are, or as int8 with a scale for each group."""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up

__all__ = ["embedding", "quantized_embedding"]

_BLOCK = 1024  # elements of a row that one program copies


@triton.jit
def embedding_kernel(
    batch, weight, scale, ids, out,
    WIDTH: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(batch):
        return
    row = tl.load(ids + token)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(weight + row * WIDTH + column, mask=inside, other=0)
    if scale is not None:
        group = column // (WIDTH // GROUPS)
        factor = tl.load(scale + row * GROUPS + group, mask=inside, other=0.0)
        value = value.to(tl.float32) * factor.to(tl.float32)
    tl.store(out + token * WIDTH + column, value.to(out.dtype.element_ty), mask=inside)


def embedding(width: int, *, weight: str, dtype: str = "float32") -> TritonKernel:
    """weight[ids]. Pointers: batch, weight [V, width], ids int64 [T], out [T, width].

    `weight` and `dtype` are the element types of the table and of out.
    """
    return _rows_of_table("embedding", width, weight, None, 1, dtype)


def quantized_embedding(width: int, *, groups: int = 1, dtype: str = "float32") -> TritonKernel:
    """(weight * scale)[ids]. Pointers: batch, weight int8 [V, width], scale float32 [V, groups],
    ids int64 [T], out [T, width].
    """
    assert width % groups == 0
    return _rows_of_table("quantized_embedding", width, "int8", "float32", groups, dtype)


def _rows_of_table(
    name: str, width: int, weight: str, scale: str | None, groups: int, dtype: str
) -> TritonKernel:
    block = min(_BLOCK, next_power_of_two(width))
    return define(
        name,
        embedding_kernel,
        {"batch": "int32", "weight": weight, "scale": scale, "ids": "int64", "out": dtype},
        {"WIDTH": width, "GROUPS": groups, "BLOCK": block},
        grid=lambda size: (size["T"], quotient_up(width, block), 1),
        num_warps=4,
    )
