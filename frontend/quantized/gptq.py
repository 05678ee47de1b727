"""GPTQ and AWQ: words of packed integers, a scale and a zero point for each group of inputs.

GPTQ: E. Frantar et al., https://arxiv.org/abs/2210.17323; packed as AutoGPTQ and GPTQModel do.
AWQ: J. Lin et al., https://arxiv.org/abs/2306.00978; packed for AutoAWQ's "gemm" kernels.
"""

from __future__ import annotations

from typing import Any

import torch

from graphwright.frontend.quantized.packed_words import (
    unpack,
    unpack_columns,
    unpack_interleaved,
)
from graphwright.frontend.quantized.tensors import Fields
from graphwright.ir.errors import FrontendError
from graphwright.ir.stored_codes import from_codes
from graphwright.ir.weights import ConstantTensor, Expression, Weight

__all__ = ["awq_weight", "check_awq", "check_gptq", "gptq_weight"]

aten = torch.ops.aten
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_BITS = (2, 3, 4, 8)


def check_gptq(settings: dict[str, Any]) -> None:
    """Raises FrontendError for a form of GPTQ that is not read."""
    form = _format(settings)
    if form not in (None, "gptq", "gptq_v2"):
        raise FrontendError(
            f"GPTQ weights in the format '{form}' are not read, 'gptq' and 'gptq_v2' are."
        )
    if settings.get("bits") not in _BITS:
        raise FrontendError(
            f"GPTQ weights of {settings.get('bits')} bits are not read, 2, 3, 4 and 8 are."
        )
    _check_group_size(settings)


def check_awq(settings: dict[str, Any]) -> None:
    """Raises FrontendError for a form of AWQ that is not read."""
    form = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if form not in ("gemm", "exllama", "ipex"):
        raise FrontendError(f"AWQ weights in the format '{form}' are not read, 'gemm' is.")
    bits = settings.get("bits", settings.get("w_bit", 4))
    if bits != 4:
        raise FrontendError(f"AWQ weights of {bits} bits are not read, 4 are.")
    _check_group_size(settings)


def gptq_weight(fields: Fields, settings: dict[str, Any]) -> Weight:
    """qweight int32 [K * bits / 32, N], scales [G, N], qzeros int32 [G, N * bits / 32] and perhaps
    g_idx int32 [K], the group of each input  ->  float32 [N, K].

    The format 'gptq' stores zero points less one, 'gptq_v2' as they are.
    """
    words = fields.required("qweight", "qweight")
    scales = fields.required("scales", "qweight")
    zeros = fields.required("qzeros", "qweight")
    index = fields.optional("g_idx")
    bits = int(settings["bits"])
    if settings.get("dynamic") and index is not None and index.shape[0]:
        bits = 32 * words.shape[0] // index.shape[0]  # of this weight: some differ from the others
    if bits not in _BITS:
        raise FrontendError(
            f"'{fields.module}.qweight' in '{fields.files.directory}' has {bits} bits a weight, by "
            f"the length of g_idx; 2, 3, 4 and 8 are read."
        )
    _check_words(fields, words, zeros, scales)
    inputs, outputs = words.shape[0] * 32 // bits, words.shape[1]
    groups = _check_groups(fields, settings, scales, inputs, outputs)
    fields.check("qzeros", zeros, (groups, outputs * bits // 32))
    order = _order(fields, settings, index, inputs, groups)
    codes = Expression.of(unpack_columns, words, bits)
    offset = 0 if _format(settings) == "gptq_v2" else 1
    zero = Expression.of(_gptq_zeros, zeros, bits, offset)
    scale = Expression.of(aten.t.default, scales)
    return Expression.of(from_codes, codes, scale, zero, order, bits=bits)


def awq_weight(fields: Fields, settings: dict[str, Any]) -> Weight:
    """qweight int32 [K, N / 8], scales [G, N], qzeros int32 [G, N / 8]  ->  float32 [N, K]."""
    words = fields.required("qweight", "qweight")
    scales = fields.required("scales", "qweight")
    zeros = fields.required("qzeros", "qweight")
    _check_words(fields, words, zeros, scales)
    inputs, outputs = words.shape[0], words.shape[1] * 8
    groups = _check_groups(fields, settings, scales, inputs, outputs)
    fields.check("qzeros", zeros, (groups, outputs // 8))
    codes = Expression.of(unpack_interleaved, words)
    scale = Expression.of(aten.t.default, scales)
    zero = Expression.of(unpack_interleaved, zeros)
    return Expression.of(from_codes, codes, scale, zero, bits=4)


def _check_words(fields: Fields, words: Weight, zeros: Weight, scales: Weight) -> None:
    for name, each in (("qweight", words), ("qzeros", zeros), ("scales", scales)):
        dtypes = _FLOATS if name == "scales" else (torch.int32,)
        fields.check_dtype(name, each, *dtypes)
        fields.check_matrix(name, each)


def _check_groups(
    fields: Fields, settings: dict[str, Any], scales: Weight, inputs: int, outputs: int
) -> int:
    """How many groups the inputs have."""
    size = _group_size(settings)
    groups = scales.shape[0] if settings.get("dynamic") else -(-inputs // (size or inputs))
    fields.check("scales", scales, (groups, outputs))
    return groups


def _check_group_size(settings: dict[str, Any]) -> None:
    size = _stored_group_size(settings)
    if type(size) is not int or (size < 1 and size != -1):
        raise FrontendError(
            f"its group size is {size!r}; expected a number of inputs, or -1 for all of them."
        )


def _stored_group_size(settings: dict[str, Any]) -> Any:
    return settings.get("group_size", settings.get("q_group_size", 128))


def _group_size(settings: dict[str, Any]) -> int | None:
    """How many inputs share a scale; None: all."""
    size = _stored_group_size(settings)
    return None if size == -1 else int(size)


def _order(
    fields: Fields, settings: dict[str, Any], index: Weight | None, inputs: int, groups: int
) -> Weight | None:
    """The group of each input; None where equal groups lie one behind the other."""
    plain = torch.arange(inputs) // (inputs // groups if inputs % groups == 0 else 1)
    if index is None or not index.shape[0] or not bool(index.load().any()):  # it was not filled in
        if inputs % groups == 0:
            return None
        cut = torch.arange(inputs) // (_group_size(settings) or inputs)
        return ConstantTensor.of(cut, f"{fields.module}: the groups of its inputs")
    fields.check("g_idx", index, (inputs,))
    found = index.load()
    least, most = int(found.min()), int(found.max())
    if least < 0 or most >= groups:
        raise FrontendError(
            f"'{fields.module}.g_idx' in '{fields.files.directory}' holds {least} to {most}; "
            f"there are {groups} groups."
        )
    return None if torch.equal(found, plain.to(found.dtype)) else index


def _gptq_zeros(words: torch.Tensor, bits: int, offset: int) -> torch.Tensor:
    """int32 [G, W] -> uint8 [N, G], `offset` added as it was subtracted: from whole words."""
    if bits == 3:
        values = unpack(words, bits)
        return ((values + offset) & 7).t().contiguous()
    ones = sum(1 << place for place in range(0, 32, bits)) * offset
    # A zero point of 0 borrowed from the value above it: the carry gives that back.
    return unpack(words + torch.tensor(ones, dtype=torch.int64).to(torch.int32), bits).t()


def _format(settings: dict[str, Any]) -> str | None:
    form = settings.get("checkpoint_format") or settings.get("format")
    return str(form).lower() if form else None
