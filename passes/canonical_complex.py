"""Canonical spellings of complex numbers: real and imaginary parts, computed side by side.

Where a complex value becomes real again (`view_as_real`, `real`, `imag`), its two parts are spelled
out with real ops as far back as the value is complex. Each rule returns the new node, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx

from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor
from graphwright.passes.canonical_layout import canonical_sizes, same_value

__all__ = ["COMPLEX_RULES"]

aten = torch.ops.aten
Parts = tuple[fx.Node, fx.Node]
Rule = Callable[[Program, fx.Node], fx.Node | None]
# What does the same to the real and to the imaginary part:
_LINEAR = frozenset({
    aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.expand.default, aten.permute.default, aten.transpose.int, aten.slice.Tensor,
    aten.select.int, aten.index.Tensor, aten.index_select.default, aten.embedding.default,
    aten.cat.default, aten.stack.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.repeat.default, aten.repeat_interleave.self_int, aten.clone.default, aten.neg.default,
})  # fmt: skip


class _Reader:
    """Writes the parts of complex values in front of `before`, those of a value only once."""

    def __init__(self, program: Program, before: fx.Node) -> None:
        self.program = program
        self.before = before
        self.known: dict[fx.Node, Parts | None] = {}

    def parts(self, value: fx.Node) -> Parts | None:
        """The real and the imaginary part of `value`; None when an op on the way is not known."""
        if value not in self.known:
            self.known[value] = self._parts(value)
        return self.known[value]

    def _parts(self, value: fx.Node) -> Parts | None:
        if value.op == "get_attr":
            return self._of_constant(value)
        if value.target in _LINEAR:
            return self.each(value)
        rule = _PARTS.get(value.target)
        return None if rule is None else rule(self, value)

    def _of_constant(self, value: fx.Node) -> Parts | None:
        weight = self.program.weight_of(value)
        if not isinstance(weight, ConstantTensor):
            return None
        real, imaginary = (
            self.program.add_weight(f"{value.target}_{name}", ConstantTensor.of(part.contiguous()))
            for name, part in (("real", weight.tensor.real), ("imaginary", weight.tensor.imag))
        )
        return real, imaginary

    def each(self, value: fx.Node, **kwargs: Any) -> Parts | None:
        """The op of `value`, once over the real parts of its operands, once over the others."""
        operands: dict[fx.Node, Parts] = {}
        for node in filter(_is_complex, value.all_input_nodes):
            parts = self.parts(node)
            if parts is None:
                return None
            operands[node] = parts
        made = []
        for number in (0, 1):
            swap = {node: parts[number] for node, parts in operands.items()}
            args: Any = fx.node.map_arg(value.args, partial(_swapped, swap))
            made.append(self.call(value, value.target, *args, **(kwargs or value.kwargs)))
        return made[0], made[1]

    def call(self, source: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call that stands for (a part of) `source` and names its line in errors."""
        new = self.program.call(self.before, target, *args, **kwargs)
        if "stack_trace" in source.meta:
            new.meta["stack_trace"] = source.meta["stack_trace"]
        return new


def _swapped(swap: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    return swap.get(node, node)


def _is_complex(node: Any) -> bool:
    """Is `node` a tensor of complex numbers?"""
    value = node.meta["val"] if isinstance(node, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.is_complex()


def _view_as_complex(reader: _Reader, value: fx.Node) -> Parts:
    """[..., n, 2]: the two values that were stacked, or the even and odd entries of [..., 2n]."""
    pairs: Any = value.args[0]
    shape = pairs.meta["val"].shape
    if pairs.target is aten.stack.default and pairs.args[1:] in ((-1,), (len(shape) - 1,)):
        real, imaginary = pairs.args[0]
        return real, imaginary
    sizes = canonical_sizes(pairs.meta["val"])
    if sizes is None or len(shape) < 2 or not isinstance(shape[-2], int):
        first, second = (reader.call(value, aten.select.int, pairs, -1, i) for i in (0, 1))
        return first, second
    size = 2 * shape[-2]
    flat = reader.call(value, aten.reshape.default, pairs, [*sizes[:-2], size])
    even, odd = (
        reader.call(value, aten.slice.Tensor, flat, len(shape) - 2, i, size, 2) for i in (0, 1)
    )
    return even, odd


def _polar(reader: _Reader, value: fx.Node) -> Parts:
    """length * cos(angle), length * sin(angle)"""
    length, angle = value.args[:2]
    cos, sin = (
        reader.call(value, aten.mul.Tensor, length, reader.call(value, function, angle))
        for function in (aten.cos.default, aten.sin.default)
    )
    return cos, sin


def _complex(reader: _Reader, value: fx.Node) -> Parts | None:
    real, imaginary = value.args[:2]
    assert isinstance(real, fx.Node) and isinstance(imaginary, fx.Node)
    if real.meta["val"].shape != imaginary.meta["val"].shape:
        return None
    return real, imaginary


def _multiply(reader: _Reader, value: fx.Node) -> Parts | None:
    """(a + bi)(c + di) = (ac - bd) + (ad + bc)i; a real factor multiplies both parts."""
    left, right = value.args[:2]
    if not (_is_complex(left) and _is_complex(right)):
        return _scale(reader, value)
    one, other = reader.parts(left), reader.parts(right)  # type: ignore[arg-type]
    if one is None or other is None:
        return None
    ac, bd, ad, bc = (
        reader.call(value, aten.mul.Tensor, one[i], other[j])
        for i, j in ((0, 0), (1, 1), (0, 1), (1, 0))
    )
    real = reader.call(value, aten.sub.Tensor, ac, bd)
    return real, reader.call(value, aten.add.Tensor, ad, bc)


def _scale(reader: _Reader, value: fx.Node) -> Parts | None:
    """A product with, or a quotient by, something real of the parts' own dtype."""
    left, right = value.args[:2]
    if value.target is aten.div.Tensor and not _is_complex(left):
        return None
    factor = right if _is_complex(left) else left
    if isinstance(factor, fx.Node):
        if factor.meta["val"].dtype != value.meta["val"].dtype.to_real():
            return None
    elif not isinstance(factor, (int, float)):
        return None
    return reader.each(value)


def _add(reader: _Reader, value: fx.Node) -> Parts | None:
    both = _is_complex(value.args[0]) and _is_complex(value.args[1])
    return reader.each(value) if both and not value.kwargs else None


def _conjugate(reader: _Reader, value: fx.Node) -> Parts | None:
    parts = reader.parts(value.args[0])  # type: ignore[arg-type]
    return parts and (parts[0], reader.call(value, aten.neg.default, parts[1]))


def _cast(reader: _Reader, value: fx.Node) -> Parts | None:
    """From complex to complex."""
    if not _is_complex(value.args[0]):
        return None
    return reader.each(value, dtype=value.meta["val"].dtype.to_real())


_PARTS: dict[Any, Callable[[_Reader, fx.Node], Parts | None]] = {
    aten.view_as_complex.default: _view_as_complex,
    aten.polar.default: _polar,
    aten.complex.default: _complex,
    aten.mul.Tensor: _multiply,
    aten.div.Tensor: _scale,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _add,
    aten._conj.default: _conjugate,
    aten._to_copy.default: _cast,
}


def _view_as_real(program: Program, node: fx.Node) -> fx.Node | None:
    """The two parts along a new last axis; view_as_real(view_as_complex(x)) → x."""
    source: Any = node.args[0]
    if source.target is aten.view_as_complex.default:
        return source.args[0]  # type: ignore[no-any-return]
    parts = _Reader(program, node).parts(source)
    if parts is None:
        return None
    return same_value(program, node, aten.stack.default, list(parts), source.meta["val"].dim())


def _part(number: int) -> Rule:
    def rule(program: Program, node: fx.Node) -> fx.Node | None:
        source: Any = node.args[0]
        parts = _Reader(program, node).parts(source) if _is_complex(source) else None
        return None if parts is None else parts[number]

    return rule


COMPLEX_RULES: dict[Any, Rule] = {
    aten.view_as_real.default: _view_as_real,
    aten.real.default: _part(0),
    aten.imag.default: _part(1),
}
