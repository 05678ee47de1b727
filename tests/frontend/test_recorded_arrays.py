"""numpy arrays that stand for weights: the same values as of arrays that are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from graphwright.frontend.gguf_files.recorded_arrays import Canvas, RecordedArray, RecordingTorch
from graphwright.frontend.recorded_tensors import RecordedTensor
from graphwright.ir.weights import ConstantTensor

VALUES = np.random.default_rng(0).random((6, 4), np.float32) + 0.5
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "rows turned": lambda x: x.reshape(3, 2, 4).swapaxes(1, 0).reshape(6, 4),
    "reshape by a shape": lambda x: x.reshape((2, 12)),
    "transposed": lambda x: x.T,
    "by a function": lambda x: np.transpose(x),
    "one row": lambda x: x[2],
    "rows": lambda x: x[1:5, :],
    "flat": lambda x: x.flatten(),
    "a dimension more": lambda x: np.expand_dims(x, axis=1),
    "logarithm": lambda x: -np.log(x),
    "one less, two more": lambda x: (x - 1) + 2,
    "split and stacked": lambda x: np.stack(np.array_split(x, 3, axis=0), axis=1),
    "split and joined": lambda x: np.concatenate(np.split(x, 2)[::-1]),
    "copied": lambda x: np.copy(x),
}


def recorded(values: np.ndarray[Any, Any] = VALUES) -> RecordedArray:
    return RecordedArray(RecordedTensor(ConstantTensor.of(torch.from_numpy(values))))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_as_of_an_array(name: str) -> None:
    wanted, got = FUNCTIONS[name](VALUES), FUNCTIONS[name](recorded())
    assert isinstance(got.tensor, RecordedTensor)
    assert (got.shape, got.ndim, len(got)) == (wanted.shape, wanted.ndim, len(wanted))
    np.testing.assert_allclose(got.tensor.weight.load().numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "name"), [(np.sin, "sin"), (np.cumsum, "cumsum"), (np.add.reduce, "add")]
)
def test_what_is_not_known_is_named(function: Callable[[Any], Any], name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"numpy's {name} on a tensor"):
        function(recorded())


def test_a_tensor_that_is_filled_part_by_part() -> None:
    library = RecordingTorch()
    made = library.from_numpy(recorded())
    assert isinstance(made, RecordedTensor)
    assert torch.equal(library.from_numpy(VALUES), torch.from_numpy(VALUES))
    canvas = library.zeros((6, 8), dtype=torch.float32)
    canvas.narrow(1, 4, 4).copy_(made)
    with pytest.raises(ValueError, match=r"parts of a tensor \[6, 8\] are missing"):
        canvas.tensor()
    canvas.narrow(1, 0, 4).copy_(made * 2)
    whole = canvas.tensor()
    assert isinstance(whole, RecordedTensor)
    wanted = np.concatenate([VALUES * 2, VALUES], axis=1)
    assert torch.equal(whole.weight.load(), torch.from_numpy(wanted))
    with pytest.raises(ValueError, match="are missing"):
        Canvas((2, 2)).tensor()
