"""Weights of eight-bit floats with a scale for all, for each row or for each block.

Blocks of 128 x 128 come from https://arxiv.org/abs/2412.19437, 3.3; the number that the values of
one are multiplied by is called `weight_scale_inv`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from graphwright.frontend.quantized.tensors import Fields, broadcast_scale
from graphwright.ir.errors import FrontendError
from graphwright.ir.weights import Expression, Weight

__all__ = ["FLOAT8", "check_float8", "float8_weight", "scaled_blocks"]

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)


def check_float8(settings: dict[str, Any]) -> None:
    """Raises FrontendError for a form of FP8 that is not read."""
    form = settings.get("fmt", "e4m3")
    if form not in ("e4m3", "e5m2"):
        raise FrontendError(f"FP8 weights in the format '{form}' are not read, e4m3 and e5m2 are.")
    block = settings.get("weight_block_size")
    if block is not None and not _is_block(block):
        raise FrontendError(f"its weight_block_size is {block!r}; expected [rows, columns].")


def float8_weight(fields: Fields, settings: dict[str, Any]) -> Weight | None:
    """weight float8 [N, K] and weight_scale_inv or weight_scale  ->  float32 [N, K]."""
    name = "weight_scale_inv"
    scale = fields.optional(name)
    if scale is None:
        name = "weight_scale"
        scale = fields.required(name, "weight")
    weight = fields.required("weight", name)
    fields.check_dtype("weight", weight, *FLOAT8)
    fields.check_dtype(name, scale, *_SCALES)
    fields.check_matrix("weight", weight)
    block = settings.get("weight_block_size")
    return scaled_blocks(fields, name, weight, scale, block)


def scaled_blocks(
    fields: Fields, name: str, weight: Weight, scale: Weight, block: list[int] | None
) -> Weight:
    """weight [N, K] by `scale`, which the field `name` holds: of one value, one a row, or, where
    blocks have `block` rows and columns, one a block.
    """
    rows, columns = weight.shape
    if block is not None and len(scale.shape) == 2:
        height, width = block
        fields.check(name, scale, (-(-rows // height), -(-columns // width)))
        return Expression.of(_by_block, weight, scale, height, width)
    count = math.prod(scale.shape)
    if count not in (1, rows):
        fields.check(name, scale, (rows, 1))
    return Expression.of(_by_row, weight, scale)


def _is_block(block: object) -> bool:
    if not isinstance(block, list) or len(block) != 2:
        return False
    return all(type(size) is int and size > 0 for size in block)


def _by_row(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """float32 [N, K]: weight [N, K] times its scale, or its row's."""
    return weight.float().mul_(broadcast_scale(scale.float(), weight.shape[0]))


def _by_block(weight: torch.Tensor, scale: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """float32 [N, K]: weight [N, K] times the scale of its block of `height` x `width`."""
    by_row = scale.float().repeat_interleave(height, 0)[: weight.shape[0]]
    return weight.float().mul_(by_row.repeat_interleave(width, 1)[:, : weight.shape[1]])
