"""Operators on numbers that are known beforehand: what graphs compute shapes with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from graphwright.frontend.onnx_models.dtypes import torch_dtype
from graphwright.frontend.onnx_models.values import MOST_KNOWN, Call, Known, Value, known

__all__ = ["computed_beforehand", "slice_parts"]


def computed_beforehand(call: Call) -> Value | tuple[Value, ...] | None:
    """The result, if all inputs are known numbers and the operator is one of these; else None."""
    given = [each for each in call.inputs if each is not None]
    if call.kind == "Shape" or call.kind == "Size":
        return _shape(call)
    function = _NUMBERS.get(call.kind)
    if function is None or not given or any(isinstance(each, torch.Tensor) for each in given):
        return None
    found = function(call)
    if found is None:
        return None
    for each in found if isinstance(found, tuple) else (found,):
        if not isinstance(each, torch.Tensor) and each.size > MOST_KNOWN:
            return None
    return found


def _shape(call: Call) -> Value:
    """Of any input, at its `start` and `end`; all elements of a shape, for Size."""
    sizes: list[Any] = list(call.value(0).shape)
    if call.kind == "Size":
        total: Any = 1
        for size in sizes:
            total = total * size
        return known(total)
    return known(sizes[call.attribute("start", 0) : call.attribute("end", len(sizes))])


def _arrays(call: Call) -> list[Known]:
    return [np.asarray(each) for each in call.inputs if each is not None]


def _quotient(a: Any, b: Any) -> Any:
    if isinstance(a, (float, np.floating)) or isinstance(b, (float, np.floating)):
        return a / b
    if isinstance(a, (int, np.integer)) and isinstance(b, (int, np.integer)):
        return -(-a // b) if (a < 0) != (b < 0) else a // b  # towards zero
    return a // b  # a symbolic length, which is not negative


def _elementwise(function: Callable[..., Any]) -> Callable[[Call], Value | None]:
    def compute(call: Call) -> Value:
        arrays = _arrays(call)
        kind = np.result_type(*arrays) if all(a.dtype != object for a in arrays) else None
        result = np.frompyfunc(function, len(arrays), 1)(*arrays)
        result = np.asarray(result, dtype=object)
        return result.astype(kind) if kind is not None else known(result)

    return compute


def _compare(function: Callable[[Any, Any], Any]) -> Callable[[Call], Value]:
    def compute(call: Call) -> Value:
        a, b = _arrays(call)
        found = np.frompyfunc(lambda x, y: bool(function(x, y)), 2, 1)(a, b)
        return np.asarray(found, dtype=np.bool_)

    return compute


def _gather(call: Call) -> Value:
    data, indices = _arrays(call)
    return np.asarray(np.take(data, indices.astype(np.int64), axis=call.attribute("axis", 0)))


def _concat(call: Call) -> Value:
    return np.concatenate(_arrays(call), axis=call.attribute("axis"))


def _squeeze(call: Call) -> Value:
    axes = call.axes()
    data = _arrays(call)[0]
    return np.squeeze(data) if axes is None else np.squeeze(data, tuple(axes))


def _unsqueeze(call: Call) -> Value:
    axes = call.axes()
    assert axes is not None
    return np.expand_dims(_arrays(call)[0], tuple(axes))


def slice_parts(call: Call) -> list[tuple[int, Any, Any, Any]]:
    """(axis, start, end, step) of each axis that a Slice of any opset cuts."""
    if "starts" in call.attributes:
        starts, ends = call.attribute("starts"), call.attribute("ends")
        axes, steps = call.attribute("axes"), None
    else:
        starts, ends = call.numbers(1), call.numbers(2)
        axes = call.numbers(3) if call.has(3) else None
        steps = call.numbers(4) if call.has(4) else None
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    return [(int(axis), *rest) for axis, *rest in zip(axes, starts, ends, steps, strict=True)]


def _slice(call: Call) -> Value | None:
    data = _arrays(call)[0]
    index: list[Any] = [slice(None)] * data.ndim
    for axis, start, end, step in slice_parts(call):
        if not all(isinstance(each, (int, np.integer)) for each in (start, end, step)):
            return None
        last = None if step < 0 and end < -data.shape[axis] else int(end)
        index[axis] = slice(int(start), last, int(step))
    return np.asarray(data[tuple(index)])


def _reshape(call: Call) -> Value:
    data = _arrays(call)[0]
    shape = [int(each) for each in call.numbers(1)]
    if not call.attribute("allowzero", 0):
        shape = [data.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return data.reshape(shape)


def _cast(call: Call) -> Value | None:
    to, data = torch_dtype(call.attribute("to"), call.keeps_types), _arrays(call)[0]
    if data.dtype == object:
        return data if to is torch.int64 or to is torch.int32 else None
    if to is torch.bfloat16:
        return None
    return np.asarray(data.astype(str(to).removeprefix("torch.")))


def _range(call: Call) -> Value | None:
    start, limit, step = (each.reshape(-1)[0] for each in _arrays(call))
    if all(isinstance(each, np.generic) for each in (start, limit, step)):
        return np.arange(start, limit, step)
    return None


def _filled(call: Call) -> Value | None:
    shape = call.numbers(0)
    if not all(isinstance(each, (int, np.integer)) for each in shape):
        return None
    if int(np.prod([int(each) for each in shape], dtype=np.int64)) > MOST_KNOWN:
        return None
    value = call.attribute("value")
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full([int(each) for each in shape], fill.reshape(-1)[0], dtype=fill.dtype)


def _where(call: Call) -> Value:
    condition, a, b = _arrays(call)
    if a.dtype != object and b.dtype != object:
        return np.where(condition, a, b)
    return known(np.where(condition, a.astype(object), b.astype(object)))


def _expand(call: Call) -> Value | None:
    data, shape = _arrays(call)[0], call.numbers(1)
    if not all(isinstance(each, (int, np.integer)) for each in shape):
        return None
    return np.array(np.broadcast_to(data, np.broadcast_shapes(data.shape, [int(e) for e in shape])))


def _split(call: Call) -> tuple[Value, ...]:
    data, axis = _arrays(call)[0], call.attribute("axis", 0)
    if call.has(1):
        sizes = [int(each) for each in call.numbers(1)]
    else:
        each = -(-data.shape[axis] // call.outputs)
        sizes = call.attribute("split") or [each] * call.outputs
    return tuple(np.split(data, np.cumsum(sizes)[: call.outputs - 1], axis=axis))


def _reduced(function: Callable[[Any, Any], Any]) -> Callable[[Call], Value]:
    def compute(call: Call) -> Value:
        data = _arrays(call)[0]
        axes = call.axes()
        keep = bool(call.attribute("keepdims", 1))
        if axes == [] and call.attribute("noop_with_empty_axes", 0):
            return data
        along = tuple(range(data.ndim)) if not axes else tuple(a % data.ndim for a in axes)
        result = data
        for axis in sorted(along, reverse=True):
            parts = np.moveaxis(result, axis, 0)
            total = parts[0]
            for part in parts[1:]:
                total = np.frompyfunc(function, 2, 1)(total, part)
            result = np.expand_dims(total, axis) if keep else np.asarray(total)
        return result.astype(data.dtype) if data.dtype != object else known(result)

    return compute


def _smaller(a: Any, b: Any) -> Any:
    return torch.sym_min(a, b)


def _larger(a: Any, b: Any) -> Any:
    return torch.sym_max(a, b)


_NUMBERS: dict[str, Callable[[Call], Value | tuple[Value, ...] | None]] = {
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(_quotient),
    "Mod": _elementwise(lambda a, b: a % b),
    "Neg": _elementwise(lambda a: -a),
    "Abs": _elementwise(abs),
    "Min": _elementwise(_smaller),
    "Max": _elementwise(_larger),
    "Equal": _compare(lambda a, b: a == b),
    "Less": _compare(lambda a, b: a < b),
    "LessOrEqual": _compare(lambda a, b: a <= b),
    "Greater": _compare(lambda a, b: a > b),
    "GreaterOrEqual": _compare(lambda a, b: a >= b),
    "And": _compare(lambda a, b: a and b),
    "Or": _compare(lambda a, b: a or b),
    "Not": lambda call: np.asarray(np.logical_not(_arrays(call)[0])),
    "Gather": _gather, "Concat": _concat, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Slice": _slice, "Reshape": _reshape, "Cast": _cast, "Range": _range, "Where": _where,
    "ConstantOfShape": _filled, "Expand": _expand, "Split": _split,
    "ReduceProd": _reduced(lambda a, b: a * b),
    "ReduceSum": _reduced(lambda a, b: a + b),
    "ReduceMax": _reduced(_larger),
    "ReduceMin": _reduced(_smaller),
    "Identity": lambda call: _arrays(call)[0],
}  # fmt: skip
