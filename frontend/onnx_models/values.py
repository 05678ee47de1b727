"""Values while a graph runs: tensors, and numbers that are known beforehand.

An ONNX graph computes the shapes that it asks for from the shapes of what it has. Such numbers stay
out of the traced graph: they are numpy arrays, of objects where a length is symbolic.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from graphwright.ir.errors import FrontendError

__all__ = ["MOST_KNOWN", "Call", "Known", "Value", "as_tensor", "known", "plain_number"]

Known: TypeAlias = NDArray[Any]
Value: TypeAlias = torch.Tensor | Known

MOST_KNOWN = 4096  # elements of such an array


def known(numbers: Any) -> Known:
    """Integers, some of them perhaps symbolic, as an array."""
    array = np.array(numbers, dtype=object)
    if all(isinstance(each, (int, np.integer)) for each in array.flat):
        return array.astype(np.int64)
    return array


def plain_number(value: Known) -> Any:
    """The only element: an int, a float or a symbolic int, no numpy scalar."""
    number = value.reshape(-1)[0]
    return number.item() if isinstance(number, np.generic) else number


def as_tensor(value: Value) -> torch.Tensor:
    """A known value as a tensor: symbolic lengths become scalars of the graph."""
    if isinstance(value, torch.Tensor):
        return value
    if value.dtype != object:
        return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    each = [torch.scalar_tensor(number, dtype=torch.int64) for number in value.flat]
    return torch.stack(each).reshape(value.shape)


class Call:
    """A node of the graph with the values of its inputs, None where an optional one is absent.

    keeps_types: are casts to narrow floats what they say, or float32?
    """

    def __init__(
        self, kind: str, name: str, inputs: list[Value | None], attributes: dict[str, Any],
        outputs: int, opset: int, keeps_types: bool,
    ) -> None:  # fmt: skip
        self.kind, self.name, self.inputs, self.attributes = kind, name, inputs, attributes
        self.outputs, self.opset, self.keeps_types = outputs, opset, keeps_types

    def has(self, place: int) -> bool:
        """Is the optional input there?"""
        return place < len(self.inputs) and self.inputs[place] is not None

    def value(self, place: int) -> Value:
        """An input that must be there. Raises FrontendError."""
        if not self.has(place):
            raise self.error(f"lacks its input {place}")
        found = self.inputs[place]
        assert found is not None
        return found

    def tensor(self, place: int) -> torch.Tensor:
        """An input as a tensor. Raises FrontendError."""
        return as_tensor(self.value(place))

    def tensors(self) -> list[torch.Tensor]:
        """All inputs that are there."""
        return [as_tensor(each) for each in self.inputs if each is not None]

    def optional(self, place: int) -> torch.Tensor | None:
        """An optional input as a tensor."""
        return self.tensor(place) if self.has(place) else None

    def numbers(self, place: int) -> list[Any]:
        """An input whose elements must be known: a shape, axes. Raises FrontendError."""
        value = self.value(place)
        if isinstance(value, torch.Tensor):
            try:
                return [int(each) for each in value.reshape(-1).tolist()]
            except Exception as error:
                raise self.error(f"needs the numbers of its input {place}, and they depend on data"
                                 ) from error  # fmt: skip
        return list(value.reshape(-1))

    def scalar(self, place: int) -> Any:
        """An input of one number, an integer or not, that must be known. Raises FrontendError."""
        value = self.value(place)
        if isinstance(value, torch.Tensor):
            try:
                return value.item()
            except Exception as error:
                raise self.error(f"needs the number of its input {place}, which depends on data"
                                 ) from error  # fmt: skip
        return plain_number(value)

    def axes(self, place: int = 1) -> list[Any] | None:
        """The axes, an input in newer opsets and an attribute in older ones; None: not given."""
        if self.has(place):
            return [int(each) for each in self.numbers(place)]
        found = self.attributes.get("axes")
        return None if found is None else list(found)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)

    def error(self, what: str) -> FrontendError:
        """A sentence about this node."""
        return FrontendError(f"the node '{self.name}' ({self.kind}) of the ONNX graph {what}.")
