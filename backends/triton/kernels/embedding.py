"""Rows of a table by token id: stored as they are, or as integers with a scale for each group."""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import TritonKernel, define
from graphwright.backends.triton.kernels.nibbles import place_of_row
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.kernels.weight_format import WeightFormat

__all__ = ["embedding", "quantized_embedding"]

_BLOCK = 1024  # elements of a row that one program copies


@triton.jit
def embedding_kernel(
    batch, weight, scale, zero, ids, out,
    K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(batch):
        return
    row = tl.load(ids + token)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < K
    if KIND == "w4":
        run, inner = column % 128 // 16, column % 16  # as weight_format.py says
        word = inner // 2 % 4 * 4 + inner // 8 * 2 + run // 4
        at = weight + place_of_row(row, ROW) + column // 128 * 512
        packed = tl.load(at + word * 4 + inner % 2 * 2 + run % 4 // 2, mask=inside, other=0)
        value = (packed.to(tl.int32) >> (run % 2 * 4)) & 15
    else:
        value = tl.load(weight + row * ROW + column, mask=inside, other=0)
    if KIND != "dense":
        group = row * GROUPS
        if GROUP > 0:
            group += column // GROUP
        factor = tl.load(scale + group + column * 0, mask=inside, other=0.0).to(tl.float32)
        value = value.to(tl.float32)
        if zero is not None:
            value -= tl.load(zero + group, mask=inside, other=0).to(tl.float32)
        elif KIND == "w4":
            value -= 8.0
        value = value * factor
    tl.store(out + token * K + column, value.to(out.dtype.element_ty), mask=inside)


def embedding(width: int, *, weight: str, dtype: str = "float32") -> TritonKernel:
    """weight[ids]. Pointers: batch, weight [V, width], ids int64 [T], out [T, width].

    `weight` and `dtype` are the element types of the table and of out.
    """
    return _rows_of_table("embedding", width, WeightFormat.dense(weight), dtype)


def quantized_embedding(width: int, scheme: str, *, dtype: str = "float32") -> TritonKernel:
    """((weight - zero) * scale)[ids]. Pointers: batch, weight, scale, (zero) as in WeightFormat,
    ids int64 [T], out [T, width].
    """
    return _rows_of_table("quantized_embedding", width, WeightFormat.of(scheme), dtype)


def _rows_of_table(name: str, width: int, format: WeightFormat, dtype: str) -> TritonKernel:
    block = min(_BLOCK, next_power_of_two(width))
    return define(
        name,
        embedding_kernel,
        {"batch": "int32", **format.pointers(), "ids": "int64", "out": dtype},
        {**format.constants(width), "BLOCK": block},
        grid=lambda size: (size["T"], quotient_up(width, block), 1),
        num_warps=4,
    )
