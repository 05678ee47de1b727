"""Tiny checkpoints as quantizers write them, packed value by value, and what they stand for.

Each packer takes a float weight [N, K] and gives the tensors that are stored in its place, by the
last part of their names, with the float32 weight [N, K] that they stand for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

__all__ = [
    "Packer",
    "awq",
    "float8_blocks",
    "float8_rows",
    "gptq",
    "int8",
    "pack_quantized",
    "write_quantized",
]

Packer = Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours each nibble holds


def gptq(
    bits: int, group: int, *, sym: bool = True, act_order: bool = False, v2: bool = False
) -> Packer:
    """qweight, qzeros, scales and g_idx; group -1: one for all inputs."""

    def pack(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        index = _groups(weight.shape[1], group)
        if act_order:
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(5))]
        codes, scale, zero = _rounded(weight, index, bits, sym)
        stored = zero if v2 else zero - 1
        tensors = {
            "qweight": _words(codes.T, bits, axis=0),
            "qzeros": _words(stored.T, bits, axis=1),
            "scales": torch.tensor(scale.T).half().contiguous(),
            "g_idx": index.to(torch.int32),
        }
        return tensors, _values(codes, scale, zero, index)

    return pack


def awq(group: int) -> Packer:
    """qweight, qzeros and scales of the "gemm" format."""

    def pack(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        index = _groups(weight.shape[1], group)
        codes, scale, zero = _rounded(weight, index, 4, False)
        tensors = {
            "qweight": _words(_interleaved(codes.T), 4, axis=1),
            "qzeros": _words(_interleaved(zero.T), 4, axis=1),
            "scales": torch.tensor(scale.T).half().contiguous(),
        }
        return tensors, _values(codes, scale, zero, index)

    return pack


def pack_quantized(
    bits: int, group: int, *, sym: bool = True, act_order: bool = False, dtype: Any = torch.bfloat16
) -> Packer:
    """weight_packed, weight_shape, weight_scale and perhaps weight_zero_point, weight_g_idx."""

    def pack(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        index = _groups(weight.shape[1], group)
        if act_order:
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(7))]
        codes, scale, zero = _rounded(weight, index, bits, sym, dtype)
        tensors = {
            "weight_packed": _words(codes, bits, axis=1),
            "weight_shape": torch.tensor(weight.shape),
            "weight_scale": torch.tensor(scale).to(dtype),
        }
        if not sym:
            tensors["weight_zero_point"] = _words(zero, bits, axis=0)
        if act_order:
            tensors["weight_g_idx"] = index.to(torch.int32)
        return tensors, _values(codes, scale, zero, index)

    return pack


def int8(*, whole: bool = False) -> Packer:
    """weight int8 and weight_scale of each row, or of the whole."""

    def pack(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        largest = weight.abs().amax() if whole else weight.abs().amax(1, keepdim=True)
        scale = (largest / 127).bfloat16().float()
        codes = (weight / scale).round().clamp(-127, 127)
        tensors = {"weight": codes.to(torch.int8), "weight_scale": scale.reshape(-1, 1).bfloat16()}
        if whole:
            tensors["weight_scale"] = tensors["weight_scale"].reshape(1)
        return tensors, codes * scale

    return pack


def float8_rows(*, whole: bool = False) -> Packer:
    """weight float8 and weight_scale of each row, or of the whole."""

    def pack(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        largest = weight.abs().amax() if whole else weight.abs().amax(1, keepdim=True)
        scale = largest / 448
        values = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": values, "weight_scale": scale}, values.float() * scale

    return pack


def float8_blocks(height: int = 128, width: int = 128, *, powers: bool = False) -> Packer:
    """weight float8 and weight_scale_inv of each block; powers: of two, stored as exponents."""

    def pack(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows, columns = weight.shape
        scale = torch.empty(-(-rows // height), -(-columns // width))
        values = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
        meant = torch.empty_like(weight)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                part = (slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))
                scale[i, j] = weight[part].abs().amax() / 448
                if powers:
                    scale[i, j] = scale[i, j].log2().ceil().exp2()
                values[part] = (weight[part] / scale[i, j]).to(torch.float8_e4m3fn)
                meant[part] = values[part].float() * scale[i, j]
        stored = scale.to(torch.float8_e8m0fnu) if powers else scale
        return {"weight": values, "weight_scale_inv": stored}, meant

    return pack


def write_quantized(
    source: Path,
    folder: Path,
    pack: Packer,
    config: dict[str, Any],
    part: str | tuple[str, ...] = "_proj.weight",
) -> tuple[Path, Path]:
    """Two checkpoints from the plain one in `source`: `folder`/quantized, whose weights that are
    called `*part` are packed, and `folder`/plain, which holds what those stand for in float32.
    """
    stored: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        stored[name] = plain[name] = tensor
        if name.endswith(part):
            del stored[name]
            tensors, plain[name] = pack(tensor.float())
            stem = name.removesuffix(".weight")
            stored.update((f"{stem}.{key}", value) for key, value in tensors.items())
    quantized = _directory(source, folder / "quantized", stored, {"quantization_config": config})
    return quantized, _directory(source, folder / "plain", plain, {"dtype": "float32"})


def _directory(
    source: Path, target: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]
) -> Path:
    shutil.copytree(source, target)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, target / "model.safetensors", metadata={"format": "pt"})
    path = target / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return target


def _groups(inputs: int, group: int) -> torch.Tensor:
    return torch.arange(inputs) // (inputs if group == -1 else group)


def _rounded(
    weight: torch.Tensor, index: torch.Tensor, bits: int, sym: bool, dtype: Any = torch.float16
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unsigned codes [N, K], scales [N, G] of that type as float32, and zero points [N, G]."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    groups = int(index.max()) + 1
    codes = np.zeros(weight.shape, dtype=np.int64)
    scale = np.zeros((len(weight), groups), dtype=np.float32)
    zero = np.zeros((len(weight), groups), dtype=np.int64)
    for group in range(groups):
        columns = (index == group).numpy()
        part = weight.numpy()[:, columns]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        wide = 2 * np.maximum(-low, high) if sym else high - low
        scale[:, group] = torch.tensor(wide / top).to(dtype).float().numpy()
        zero[:, group] = middle if sym else np.clip(np.round(-low / scale[:, group]), 1, top)
        steps = np.round(part / scale[:, [group]]) + zero[:, [group]]
        codes[:, columns] = np.clip(steps, 0, top)
    return codes, scale, zero


def _values(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, index: torch.Tensor
) -> torch.Tensor:
    place = index.numpy()
    return torch.tensor((codes - zero[:, place]).astype(np.float32) * scale[:, place])


def _interleaved(values: np.ndarray) -> np.ndarray:
    """Columns in the order in which their nibbles lie."""
    order = [start + each for start in range(0, values.shape[1], 8) for each in _AWQ_ORDER]
    return values[:, order]


def _words(values: np.ndarray, bits: int, axis: int) -> torch.Tensor:
    """Along `axis` one number of `bits` bits after the other, the first one lowest, as int32."""
    lines = []
    for line in np.moveaxis(values, axis, -1).tolist():
        number = sum(int(value) << (bits * place) for place, value in enumerate(line))
        words = -(-len(line) * bits // 32)
        lines.append([number >> (32 * word) & 0xFFFFFFFF for word in range(words)])
    packed = np.array(lines, dtype=np.uint32).view(np.int32)
    return torch.tensor(np.ascontiguousarray(np.moveaxis(packed, -1, axis)))
