"""Lazy weights: nothing is read before load, expressions compute, files are referenced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from graphwright.ir.schemes import quantize_weight
from graphwright.ir.weights import (
    CheckpointTensor,
    ConstantTensor,
    Expression,
    TensorFile,
    WeightStore,
)

aten = torch.ops.aten


def test_a_checkpoint_tensor_is_read_only_when_loaded(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "model.safetensors")
    weight = CheckpointTensor((2, 3), torch.bfloat16, file, "layer.weight")
    values = torch.randn(2, 3, dtype=torch.bfloat16)
    save_file({"layer.weight": values}, tmp_path / "model.safetensors")
    assert torch.equal(weight.load(), values)
    assert weight.nbytes == 12
    assert weight.describe() == "model.safetensors:layer.weight"


def test_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"w{i}": torch.randn(3) for i in range(20)}
    save_file(tensors, tmp_path / "model.safetensors")
    opened = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        opened.append(args)
        return safe_open(*args, **kwargs)

    monkeypatch.setattr("safetensors.safe_open", counting)
    file = TensorFile(tmp_path / "model.safetensors")
    weights = [CheckpointTensor((3,), torch.float32, file, key) for key in tensors]
    assert not opened
    for weight, values in zip(weights * 2, list(tensors.values()) * 2, strict=True):
        assert torch.equal(weight.load(), values)
    assert len(opened) == 1


def test_expressions_know_their_shape_without_loading() -> None:
    loads = []

    class Counting(ConstantTensor):
        def load(self) -> torch.Tensor:
            loads.append(1)
            return super().load()

    a = Counting((2, 4), torch.float32, torch.ones(2, 4))
    both = Expression.of(aten.cat.default, [a, a], 0)
    as_double = Expression.of(aten._to_copy.default, both, dtype=torch.float64)
    assert (as_double.shape, as_double.dtype, loads) == ((4, 4), torch.float64, [])
    assert torch.equal(as_double.load(), torch.ones(4, 4, dtype=torch.float64))
    assert len(loads) == 2
    assert as_double.describe() == "_to_copy(cat(constant, constant))"


def test_quantization_is_an_expression_with_two_outputs() -> None:
    source = ConstantTensor.of(torch.randn(5, 64))
    values = Expression.of(quantize_weight, source, "w8g32", output=0)
    scale = Expression.of(quantize_weight, source, "w8g32", output=1)
    assert (values.dtype, values.shape, scale.shape) == (torch.int8, (5, 64), (5, 2))
    restored = values.load().reshape(5, 2, 32) * scale.load()[..., None]
    error = (restored.reshape(5, 64) - source.tensor).abs()
    assert bool((error <= scale.load().repeat_interleave(32, 1) * 0.5001).all())


def test_store_gives_free_names_and_copies_share_weights() -> None:
    store = WeightStore()
    weight = ConstantTensor.of(torch.zeros(3))
    for _ in range(2):
        store[store.unique_name("layers.0.weight")] = weight
    assert list(store) == ["layers_0_weight", "layers_0_weight_1"]
    other = store.copy()
    del other["layers_0_weight"]
    assert len(store) == 2 and len(other) == 1 and store.nbytes == 24
