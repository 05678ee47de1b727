"""Matrix products, convolutions, and weights that are stored in few bits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from graphwright.frontend.onnx_models.registry import MICROSOFT, operator
from graphwright.frontend.onnx_models.values import Call, Value

__all__: list[str] = []


@operator("MatMul")
def _matmul(call: Call) -> Value:
    return torch.matmul(call.tensor(0), call.tensor(1))


@operator("FusedMatMul", domain=MICROSOFT)
def _fused_matmul(call: Call) -> Value:
    a, b = call.tensor(0), call.tensor(1)
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        raise call.error("transposes its batch, which is not supported")
    a = a.mT if call.attribute("transA", 0) else a
    b = b.mT if call.attribute("transB", 0) else b
    return torch.mul(torch.matmul(a, b), call.attribute("alpha", 1.0))


@operator("Gemm")
def _gemm(call: Call) -> Value:
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    a = a.mT if call.attribute("transA", 0) else a
    b = b.mT if call.attribute("transB", 0) else b
    found = torch.matmul(a, b)
    found = found if alpha == 1 else found * alpha
    return found if c is None else found + (c if beta == 1 else c * beta)


@operator("Einsum")
def _einsum(call: Call) -> Value:
    return torch.einsum(call.attribute("equation").replace(" ", ""), *call.tensors())


@operator("Conv")
def _conv(call: Call) -> Value:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    if call.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise call.error(f"pads by '{call.attribute('auto_pad')}', which is not supported")
    axes = x.dim() - 2
    pads = call.attribute("pads") or [0] * (2 * axes)
    sides = [int(n) for axis in reversed(range(axes)) for n in (pads[axis], pads[axes + axis])]
    function: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    padding: Any = pads[:axes] if pads[:axes] == pads[axes:] else None
    return function(  # type: ignore[no-any-return]
        F.pad(x, sides) if padding is None else x, weight, bias,
        call.attribute("strides") or 1, padding or 0, call.attribute("dilations") or 1,
        call.attribute("group", 1),
    )  # fmt: skip


@operator("DequantizeLinear")
def _dequantize(call: Call) -> Value:
    x, scale, zero = call.tensor(0), call.tensor(1), call.optional(2)
    axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
    wide = x.to(scale.dtype)
    if block:
        scale = scale.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
        if zero is not None:
            zero = zero.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    elif scale.dim() == 1 and scale.numel() > 1:
        shape = [1] * x.dim()
        shape[axis] = -1
        scale = scale.reshape(shape)
        zero = None if zero is None else zero.reshape(shape)
    return (wide if zero is None else wide - zero.to(scale.dtype)) * scale


@operator("MatMulNBits", domain=MICROSOFT)
def _few_bits(call: Call) -> Value:
    """x @ weight.T + bias, the weight of 4 or 8 bits in blocks of its inputs with a scale each."""
    bits, k, n = (int(call.attribute(name)) for name in ("bits", "K", "N"))
    if bits not in (4, 8):
        raise call.error(f"has weights of {bits} bits; 4 and 8 are supported")
    if call.has(4):
        raise call.error("has groups in another order (g_idx), which is not supported")
    packed, scales = call.tensor(1), call.tensor(2).reshape(n, -1, 1)
    numbers = (_nibbles(packed) if bits == 4 else packed).reshape(n, scales.shape[1], -1)
    weight = _weight(numbers, scales, call.optional(3), bits)[:, :k]
    return F.linear(call.tensor(0), weight, call.optional(5))


@operator("GatherBlockQuantized", domain=MICROSOFT)
def _few_bits_embedding(call: Call) -> Value:
    """Rows of a table that is stored as such a weight is."""
    data, scales = call.tensor(0), call.tensor(2)
    bits = int(call.attribute("bits", 4))
    axes = call.attribute("gather_axis", 0), call.attribute("quantize_axis", 1) % data.dim()
    if data.dim() != 2 or axes != (0, 1) or data.dtype is not torch.uint8 or bits not in (4, 8):
        raise call.error(f"gathers {bits} bits of {data.dtype} on axes {axes} of {data.dim()}; "
                         "4 or 8 bits as bytes, rows of two axes, are supported")  # fmt: skip
    rows, block = data.shape[0], int(call.attribute("block_size", 128))
    numbers = _nibbles(data) if bits == 4 else data
    width = numbers.shape[1]
    numbers = F.pad(numbers, (0, scales.shape[1] * block - width)).reshape(rows, -1, block)
    table = _weight(numbers, scales.reshape(rows, -1, 1), call.optional(3), bits)[:, :width]
    return F.embedding(call.tensor(1).to(torch.int64), table)


def _weight(
    numbers: torch.Tensor, scales: torch.Tensor, zero: torch.Tensor | None, bits: int
) -> torch.Tensor:
    """[n, k] of numbers [n, groups, length], scales [n, groups, 1], and zero points, packed like
    the numbers or floats; the middle of the range without.
    """
    n, groups = scales.shape[:2]
    if zero is None:
        centre: Any = float(1 << (bits - 1))
    elif zero.is_floating_point():
        centre = zero.reshape(n, groups, 1)
    else:
        unpacked = _nibbles(zero.reshape(n, -1)) if bits == 4 else zero.reshape(n, -1)
        centre = unpacked[:, :groups].to(scales.dtype).reshape(n, groups, 1)
    return torch.mul(numbers.to(scales.dtype) - centre, scales).reshape(n, -1)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 2 * bytes]: the lower half of each byte comes first."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
