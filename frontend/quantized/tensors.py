"""The stored tensors of one quantized weight, by name, with their faults as sentences."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graphwright.frontend.checkpoint_files import CheckpointFiles
from graphwright.ir.errors import FrontendError
from graphwright.ir.weights import CheckpointTensor, Weight

__all__ = ["Fields", "broadcast_scale"]


class Fields:
    """What `files` holds under `module`: `module` + "." + the name of a field."""

    def __init__(self, files: CheckpointFiles, module: str) -> None:
        self.files, self.module = files, module
        self.used: list[str] = []

    def optional(self, name: str) -> CheckpointTensor | None:
        """The tensor of a field, None where there is none. Its key is noted as used."""
        key = f"{self.module}.{name}"
        if key not in self.files:
            return None
        self.used.append(key)
        return self.files.reference(key)

    def required(self, name: str, beside: str) -> CheckpointTensor:
        """The tensor of a field. Raises FrontendError when it is missing; `beside` is there."""
        found = self.optional(name)
        if found is None:
            raise FrontendError(
                f"'{self.files.directory}' has '{self.module}.{beside}' but no "
                f"'{self.module}.{name}', without which it cannot be read."
            )
        return found

    def check(self, name: str, weight: Weight, shape: Sequence[int]) -> None:
        """Raises FrontendError when the tensor of a field is of another shape."""
        if tuple(weight.shape) != tuple(shape):
            raise FrontendError(
                f"'{self.module}.{name}' in '{self.files.directory}' is {list(weight.shape)}; "
                f"expected {list(shape)}, by the other tensors of '{self.module}' and config.json."
            )

    def check_matrix(self, name: str, weight: Weight) -> None:
        """Raises FrontendError when the tensor of a field has other than two dimensions."""
        if len(weight.shape) != 2:
            raise FrontendError(
                f"'{self.module}.{name}' in '{self.files.directory}' is {list(weight.shape)}; "
                f"expected two dimensions."
            )

    def check_dtype(self, name: str, weight: Weight, *dtypes: torch.dtype) -> None:
        """Raises FrontendError when the tensor of a field holds values of another type."""
        if weight.dtype not in dtypes:
            raise FrontendError(
                f"'{self.module}.{name}' in '{self.files.directory}' is {_name(weight.dtype)}; "
                f"expected {' or '.join(map(_name, dtypes))}."
            )


def broadcast_scale(scale: torch.Tensor, rows: int) -> torch.Tensor:
    """A scale of one value, one a row, or [rows, groups] as [rows, groups]."""
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(rows, 1)
    return scale.reshape(rows, -1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
