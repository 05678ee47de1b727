"""compressed-tensors: packed integers, plain int8, or eight-bit floats, as llm-compressor saves.

https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from typing import Any

import torch

from graphwright.frontend.quantized.float8 import scaled_blocks
from graphwright.frontend.quantized.packed_words import unpack, unpack_columns
from graphwright.frontend.quantized.tensors import Fields, broadcast_scale
from graphwright.ir.errors import FrontendError
from graphwright.ir.stored_codes import from_codes
from graphwright.ir.weights import Expression, Weight

__all__ = ["check_compressed", "compressed_weight"]

_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized")
_BITS = (2, 4, 8)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def check_compressed(settings: dict[str, Any]) -> None:
    """Raises FrontendError for a form of compressed-tensors that is not read."""
    if not all(isinstance(each, dict) for each in _groups(settings)):
        raise FrontendError("its config_groups hold something else than objects.")
    for each in (settings, *_groups(settings)):
        form = each.get("format")
        if form not in (None, "dense", "mixed-precision", *_FORMATS):
            raise FrontendError(
                f"compressed-tensors in the format '{form}' are not read, {', '.join(_FORMATS)} "
                f"are."
            )
    sparsity = settings.get("sparsity_config") or {}
    if sparsity.get("format") not in (None, "dense"):
        raise FrontendError(
            f"compressed-tensors that are sparse ('{sparsity['format']}') are not read, dense "
            f"ones are."
        )


def compressed_weight(fields: Fields, settings: dict[str, Any]) -> Weight | None:
    """The weight of a module, float32 [N, K], from

    weight_packed int32 [N, K * bits / 32], weight_shape [2], weight_scale [N, G], and perhaps
    weight_zero_point int32 [N * bits / 32, G] and weight_g_idx int [K]; or from weight int8 or
    float8 [N, K], weight_scale of one value, [N, 1], [N, G] or one a block, and perhaps
    weight_zero_point int8 like it.
    """
    if fields.optional("weight_packed") is not None:
        return _packed(fields)
    scale = fields.required("weight_scale", "weight_scale")
    fields.check_dtype("weight_scale", scale, *_FLOATS)
    weight = fields.required("weight", "weight_scale")
    fields.check_dtype("weight", weight, torch.int8, torch.float8_e4m3fn)
    fields.check_matrix("weight", weight)
    if weight.dtype == torch.float8_e4m3fn:
        return scaled_blocks(fields, "weight_scale", weight, scale, _block(settings))
    groups = _check_scale(fields, scale, *weight.shape)
    zero: Weight | int = 0
    stored = fields.optional("weight_zero_point")
    if stored is not None:
        fields.check_dtype("weight_zero_point", stored, torch.int8)
        fields.check("weight_zero_point", stored, scale.shape)
        zero = Expression.of(broadcast_scale, stored, weight.shape[0])
    rows = Expression.of(broadcast_scale, scale, weight.shape[0])
    order = _order(fields, weight.shape[1], groups)
    return Expression.of(from_codes, weight, rows, zero, order, bits=8)


def _packed(fields: Fields) -> Weight:
    words = fields.required("weight_packed", "weight_packed")
    shape = fields.required("weight_shape", "weight_packed")
    scale = fields.required("weight_scale", "weight_packed")
    fields.check_dtype("weight_packed", words, torch.int32)
    fields.check_dtype("weight_scale", scale, *_FLOATS)
    fields.check_matrix("weight_packed", words)
    fields.check("weight_shape", shape, (2,))
    rows, columns = (int(size) for size in shape.load())
    bits = next((b for b in _BITS if -(-columns * b // 32) == words.shape[-1]), 0)
    if not bits or words.shape[0] != rows:
        raise FrontendError(
            f"'{fields.module}.weight_packed' in '{fields.files.directory}' is "
            f"{list(words.shape)}, which holds no weight [{rows}, {columns}] of 2, 4 or 8 bits."
        )
    groups = _check_scale(fields, scale, rows, columns)
    zero: Weight | int = 1 << (bits - 1)
    stored = fields.optional("weight_zero_point")
    if stored is not None:
        fields.check_dtype("weight_zero_point", stored, torch.int32)
        fields.check("weight_zero_point", stored, (-(-rows * bits // 32), groups))
        zero = Expression.of(_packed_zeros, stored, bits, rows)
    codes = Expression.of(_rows, words, bits, columns)
    order = _order(fields, columns, groups)
    by_row = Expression.of(broadcast_scale, scale, rows)
    return Expression.of(from_codes, codes, by_row, zero, order, bits=bits)


def _check_scale(fields: Fields, scale: Weight, rows: int, columns: int) -> int:
    """How many groups the inputs have, by the scales [rows, groups], [rows] or of one value."""
    one = all(size == 1 for size in scale.shape)
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    ordered = f"{fields.module}.weight_g_idx" in fields.files
    fit = scale.shape[:1] == (rows,) and groups and (columns % groups == 0 or ordered)
    if not one and not fit:
        raise FrontendError(
            f"'{fields.module}.weight_scale' in '{fields.files.directory}' is "
            f"{list(scale.shape)}, which does not fit a weight [{rows}, {columns}]."
        )
    return groups


def _order(fields: Fields, columns: int, groups: int) -> Weight | None:
    """The group of each input, where they are not in order."""
    index = fields.optional("weight_g_idx")
    if index is None:
        return None
    fields.check("weight_g_idx", index, (columns,))
    found = index.load()
    least, most = int(found.min()), int(found.max())
    if least == most == -1:  # what an index holds that nobody has set
        return None
    if least < 0 or most >= groups:
        raise FrontendError(
            f"'{fields.module}.weight_g_idx' in '{fields.files.directory}' holds {least} to "
            f"{most}; there are {groups} groups."
        )
    plain = torch.arange(columns) // max(1, columns // groups)
    return None if torch.equal(found.long(), plain) else index


def _rows(words: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """int32 [N, W] -> uint8 [N, columns], 2 ** (bits - 1) more than the integers."""
    return unpack(words, bits)[:, :columns]


def _packed_zeros(words: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    """int32 [W, G] -> uint8 [rows, G], 2 ** (bits - 1) more than the zero points."""
    return unpack_columns(words, bits, None).t()[:rows]


def _block(settings: dict[str, Any]) -> list[int] | None:
    for each in _groups(settings):
        block = (each.get("weights") or {}).get("block_structure")
        if block:
            return [int(size) for size in block]
    return None


def _groups(settings: dict[str, Any]) -> list[dict[str, Any]]:
    groups = settings.get("config_groups") or {}
    return [each for each in groups.values() if each] if isinstance(groups, dict) else [groups]
