"""Operators that move elements without computing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from graphwright.frontend.onnx_models.registry import operator
from graphwright.frontend.onnx_models.shape_numbers import slice_parts
from graphwright.frontend.onnx_models.values import Call, Value, as_tensor

__all__: list[str] = []


@operator("Constant")
def _constant(call: Call) -> Value:
    for name in ("value", "value_int", "value_ints", "value_float", "value_floats"):
        if name in call.attributes:
            found = call.attributes[name]
            if isinstance(found, (np.ndarray, torch.Tensor)):
                return found
            return np.array(found, np.int64 if "int" in name else np.float32)
    raise call.error(f"has a constant of a kind that is not supported: {sorted(call.attributes)}")


@operator("ConstantOfShape")
def _filled(call: Call) -> Value:
    value = call.attribute("value")
    if value is None:
        return torch.zeros(call.numbers(0))
    number = as_tensor(value).reshape(-1)
    return torch.full(call.numbers(0), number[0].item(), dtype=number.dtype)


@operator("Range")
def _range(call: Call) -> Value:
    bounds = [call.scalar(place) for place in range(3)]
    first = call.value(0)
    kind = first.dtype if isinstance(first, torch.Tensor) else _KINDS.get(first.dtype.name)
    return torch.arange(*bounds, dtype=kind)


_KINDS = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


@operator("Reshape")
def _reshape(call: Call) -> Value:
    x = call.tensor(0)
    shape = call.numbers(1) if call.has(1) else list(call.attribute("shape"))
    if not call.attribute("allowzero", 0):
        shape = [x.shape[i] if _is_zero(size) else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _is_zero(size: Any) -> bool:
    return isinstance(size, (int, np.integer)) and size == 0


@operator("Flatten")
def _flatten(call: Call) -> Value:
    x, axis = call.tensor(0), call.attribute("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    first = 1
    for size in x.shape[:axis]:
        first = first * size
    return x.reshape(first, -1) if x.numel() else x.reshape(first, 0)


@operator("Squeeze")
def _squeeze(call: Call) -> Value:
    axes = call.axes()
    x = call.tensor(0)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@operator("Unsqueeze")
def _unsqueeze(call: Call) -> Value:
    x = call.tensor(0)
    axes = call.axes() or []
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def _transpose(call: Call) -> Value:
    x = call.tensor(0)
    return x.permute(call.attribute("perm") or tuple(range(x.dim()))[::-1])


@operator("Concat")
def _concat(call: Call) -> Value:
    axis = call.attribute("axis")
    parts = [each for each in call.tensors() if not _is_zero(each.shape[axis])]
    if not parts:
        return call.tensor(0)
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


@operator("Split")
def _split(call: Call) -> tuple[Value, ...]:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    sizes = call.numbers(1) if call.has(1) else call.attribute("split")
    if sizes is None:
        size = x.shape[axis]
        each = -(-size // call.outputs)
        sizes = [each] * (call.outputs - 1) + [size - each * (call.outputs - 1)]
    return tuple(x.split([int(each) for each in sizes], axis))


@operator("Slice")
def _slice(call: Call) -> Value:
    x = call.tensor(0)
    for axis, start, end, step in slice_parts(call):
        x = _sliced(x, axis, start, end, int(step))
    return x


def _sliced(x: torch.Tensor, axis: int, start: Any, end: Any, step: int) -> torch.Tensor:
    if step > 0:
        index: list[Any] = [slice(None)] * x.dim()
        index[axis] = slice(start, end, step)
        return x[tuple(index)]
    places = range(int(x.shape[axis]))[slice(int(start), _stop(int(end), int(x.shape[axis])), step)]
    return x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))


def _stop(end: int, size: int) -> int | None:
    """Of a slice that goes backwards: one in front of the first element is None in Python."""
    return None if end < -size else end


@operator("Gather")
def _gather(call: Call) -> Value:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    indices = call.value(1)
    if not isinstance(indices, torch.Tensor) and indices.ndim == 0:
        return x.select(axis, indices.item())
    place = as_tensor(indices).to(torch.int64)
    if not isinstance(indices, torch.Tensor) or axis != 0:
        place = torch.where(place < 0, place + x.shape[axis], place)
    if axis == 0 and x.dim() == 2 and isinstance(indices, torch.Tensor):
        return F.embedding(place, x)
    index: list[Any] = [slice(None)] * x.dim()
    index[axis % x.dim()] = place
    return x[tuple(index)]


@operator("GatherElements")
def _gather_elements(call: Call) -> Value:
    x, axis, index = call.tensor(0), call.attribute("axis", 0), call.tensor(1).to(torch.int64)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


@operator("GatherND")
def _gather_nd(call: Call) -> Value:
    x, index = call.tensor(0), call.tensor(1).to(torch.int64)
    batch = call.attribute("batch_dims", 0)
    if batch == 0:
        return x[tuple(index.movedim(-1, 0))]
    lead = tuple(x.shape[:batch])
    flat_x = x.reshape(-1, *x.shape[batch:])
    flat = index.reshape(-1, *index.shape[batch:])
    parts = [flat_x[i][tuple(flat[i].movedim(-1, 0))] for i in range(int(flat_x.shape[0]))]
    return torch.stack(parts).reshape(*lead, *parts[0].shape)


@operator("ScatterElements", "Scatter")
def _scatter_elements(call: Call) -> Value:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    index, updates = call.tensor(1).to(torch.int64), call.tensor(2)
    index = torch.where(index < 0, index + x.shape[axis], index)
    how = call.attribute("reduction", "none")
    if how == "none":
        return x.scatter(axis, index, updates)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return x.scatter_reduce(axis, index, updates, names[how])


@operator("ScatterND")
def _scatter_nd(call: Call) -> Value:
    x, index, updates = call.tensor(0), call.tensor(1).to(torch.int64), call.tensor(2)
    how = call.attribute("reduction", "none")
    places = tuple(index.movedim(-1, 0))
    if how in ("none", "add"):
        return x.index_put(places, updates, accumulate=how == "add")
    raise call.error(f"scatters by '{how}', which is not supported")


@operator("Expand")
def _expand(call: Call) -> Value:
    x, shape = call.tensor(0), call.numbers(1)
    missing = len(shape) - x.dim()
    sizes = list(x.shape)
    if missing < 0:
        shape = [1] * -missing + shape
    wanted = [
        own if _is_one(size) else size
        for size, own in zip(shape, [1] * max(0, missing) + sizes, strict=True)
    ]
    return x.expand(wanted)


def _is_one(size: Any) -> bool:
    return isinstance(size, (int, np.integer)) and size == 1


@operator("Tile")
def _tile(call: Call) -> Value:
    return call.tensor(0).repeat(*call.numbers(1))


@operator("Pad")
def _pad(call: Call) -> Value:
    x, mode = call.tensor(0), call.attribute("mode", "constant")
    pads = call.numbers(1) if call.has(1) else list(call.attribute("pads"))
    value = call.scalar(2) if call.has(2) else call.attribute("value", 0)
    axes = [int(a) % x.dim() for a in call.numbers(3)] if call.has(3) else list(range(x.dim()))
    given = {axis: (pads[i], pads[len(axes) + i]) for i, axis in enumerate(axes)}
    sides = [int(n) for axis in reversed(range(x.dim())) for n in given.get(axis, (0, 0))]
    if mode == "constant":
        return F.pad(x, sides, value=float(value) if x.is_floating_point() else int(value))
    if mode != "wrap" and any(sides[2 * min(x.dim(), 3) :]):
        raise call.error(f"pads more than three axes by '{mode}', which is not supported")
    raise call.error(f"pads by '{mode}', which is not supported")


@operator("Trilu")
def _trilu(call: Call) -> Value:
    diagonal = int(call.numbers(1)[0]) if call.has(1) else 0
    x = call.tensor(0)
    return x.triu(diagonal) if call.attribute("upper", 1) else x.tril(diagonal)


@operator("OneHot")
def _one_hot(call: Call) -> Value:
    depth, axis = int(call.numbers(1)[0]), call.attribute("axis", -1)
    values, index = call.tensor(2), call.tensor(0).to(torch.int64)
    index = torch.where(index < 0, index + depth, index)
    on = (index.unsqueeze(-1) == torch.arange(depth)).movedim(-1, axis)
    return torch.where(on, values[1], values[0])
