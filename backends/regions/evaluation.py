"""The value of a node of a region at some indices, over its inputs: what backends have in common.

`Evaluation.compute` takes one step from a node towards the inputs. Shape ops only rewrite indices,
so that no intermediate value is stored; other ops combine the values of their arguments. How values
are written down is the backend's business: one element in a loop, or a tile at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import fx

from graphwright.backends.regions.index import Index, flatten
from graphwright.backends.regions.operands import (
    CONDITIONS,
    common_dtype,
    dtype_name,
    is_constant,
)
from graphwright.backends.regions.shapes import (
    MOVES,
    Arguments,
    Piece,
    arguments,
    broadcast,
    pieces,
    refuse,
    shape_of,
)
from graphwright.ir.layout import row_axis

__all__ = ["Evaluation"]

Value = TypeVar("Value")
_FILLS = {"zeros": 0, "ones": 1, "zeros_like": 0, "ones_like": 1, "new_zeros": 0, "new_ones": 1}


class Evaluation(ABC, Generic[Value]):
    """Values by node and indices; what was computed once in a scope is found again.

    pointwise: by an op's name, its function of the arguments by name. reductions: by overload, of
    (this, node, arguments, indices).
    """

    pointwise: ClassVar[Mapping[str, Callable[[Arguments], Any]]]
    reductions: ClassVar[Mapping[str, Callable[[Any, fx.Node, Arguments, list[Index]], Any]]]

    def of(self, node: Any, indices: list[Index]) -> Value:
        """`node` at `indices`, in its dtype. Raises BackendError naming a node."""
        key = (node, *indices)
        found: Value = self.recall(key, lambda: self.bind(self.compute(node, indices)))
        return found

    # ---- how a backend writes values

    @abstractmethod
    def variable(self, low: float, high: float, value: Value) -> Index:
        """A new index variable in [low, high]."""

    @abstractmethod
    def bind(self, value: Value) -> Value:
        """`value` computed once, so that it may be used twice."""

    @abstractmethod
    def recall(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """compute(), or what it gave for the same key in this scope."""

    @abstractmethod
    def constant(self, number: Any, dtype: str) -> Value:
        """A Python number."""

    @abstractmethod
    def cast(self, value: Value, dtype: str) -> Value:
        """As torch's `.to`."""

    @abstractmethod
    def load(self, node: fx.Node, position: Index) -> Value:
        """The element at `position` of what the placeholder `node` stands for."""

    @abstractmethod
    def stride(self, node: fx.Node) -> int:
        """Elements from one row of a placeholder to the next."""

    @abstractmethod
    def row_count(self) -> Value:
        """The number of rows, as an integer."""

    @abstractmethod
    def clamped(self, index: Index, most: int) -> Value:
        """`index`, or the nearest of 0 and `most` when it is not between them."""

    @abstractmethod
    def before(self, index: Index, end: int, yes: Value, no: Value) -> Value:
        """`yes` where index < end, else `no`."""

    @abstractmethod
    def from_end(self, number: Value, size: int) -> Value:
        """`number`, and number + size where it is negative."""

    def note_join(self, index: Index, bounds: list[int]) -> None:
        """Hears where along `index` another input takes over."""

    def apply(self, name: str, operands: Arguments, dtype: str) -> Value:
        """The pointwise op `name`, whose result is `dtype`."""
        found: Value = self.pointwise[name](operands)
        return found

    # ---- what nodes mean

    def compute(self, node: fx.Node, indices: list[Index]) -> Value:
        """`node` at `indices`, by the values of its arguments."""
        if node.op == "placeholder":
            return self._load(node, indices)
        if node.op != "call_function" or getattr(node.target, "namespace", "") != "aten":
            raise refuse(node, "is no aten op")
        overload = str(node.target).removeprefix("aten.")
        name, given = overload.split(".")[0], arguments(node)
        dtype = dtype_name(node.meta["val"].dtype)
        if overload in MOVES:
            return self.of(node.args[0], MOVES[overload](node, given, indices))
        if (parts := pieces(node)) is not None:
            return self._join(indices, dtype, *parts)
        if overload in self.reductions:
            reduced: Value = self.reductions[overload](self, node, given, indices)
            return reduced
        if name in ("embedding", "index_select", "index", "gather"):
            return self._gather(node, name, given, indices)
        if name in ("full", "full_like"):
            return self.constant(given["fill_value"], dtype)
        if name == "scalar_tensor":
            return self.constant(given["s"], dtype)
        if name in _FILLS:
            return self.constant(_FILLS[name], dtype)
        if name in self.pointwise:
            return self._pointwise(name, given, indices, dtype)
        raise refuse(node, "is not an op that regions know")

    def _load(self, node: fx.Node, indices: list[Index]) -> Value:
        value = node.meta["val"]
        axis = row_axis(value)
        if axis is None:
            position = flatten(indices, [int(size) for size in value.shape])
        else:
            sizes = [int(size) for size in value.shape[axis + 1 :]]
            position = indices[axis] * self.stride(node) + flatten(indices[axis + 1 :], sizes)
        return self.load(node, position)

    def _join(
        self, indices: list[Index], dtype: str, axis: int, parts: list[Piece], filler: float
    ) -> Value:
        """One of the parts by the index; when that is not known, all of them and a selection."""
        index = indices[axis]
        low, high = index.bounds()
        near = [p for p in parts if p.first <= high and p.first + p.size > low]
        self.note_join(index, [part.first for part in near[1:]])

        def value(part: Piece) -> Value:
            if part.source is None:
                return self.constant(filler, dtype)
            local = index + -part.first
            if len(near) > 1:
                key, most = ("clamped", index, part.first, part.size), part.size - 1
                own = local
                local = self.recall(
                    key, lambda: self.variable(0, most, self.bind(self.clamped(own, most)))
                )
            at = [*indices[:axis], *[local] * (not part.stacked), *indices[axis + 1 :]]
            return self.cast(self.of(part.source, at), dtype)

        total = value(near[-1])
        for part in near[-2::-1]:
            total = self.before(index, part.first + part.size, value(part), total)
        return total

    def _gather(self, node: fx.Node, name: str, given: Arguments, indices: list[Index]) -> Value:
        source: Any = given.get("self")
        number: Any = given.get("index")
        axis = int(given.get("dim") or 0)
        if name == "embedding":
            source, number = given["weight"], given["indices"]
        elif name == "index":
            used = [i for i, each in enumerate(given["indices"]) if each is not None]
            if len(used) != 1:
                raise refuse(node, f"gathers along {len(used)} axes at once")
            axis, number = used[0], given["indices"][used[0]]
        axis %= len(shape_of(source))
        size = shape_of(source)[axis]
        if size is None:
            raise refuse(node, "gathers rows")
        count = number.meta["val"].dim()
        at = indices if name == "gather" else indices[axis : axis + count]
        signed = name == "index"

        def chosen() -> Index:
            found = self.bind(self.cast(self.of(number, at), "int32"))
            if signed:
                found = self.bind(self.from_end(found, size))
            return self.variable(0, size - 1, found)

        position = self.recall(("gathered", number, size, signed, *at), chosen)
        skipped = 1 if name == "gather" else count
        return self.of(source, [*indices[:axis], position, *indices[axis + skipped :]])

    def _pointwise(self, name: str, given: Arguments, indices: list[Index], dtype: str) -> Value:
        common = common_dtype(name, given, dtype)
        operands: Arguments = {}
        for key, value in given.items():
            own = "bool" if (name, key) in CONDITIONS else common
            if isinstance(value, fx.Node):
                operands[key] = self.bind(self.cast(self._operand(value, indices), own))
            else:
                constant = is_constant(name, key, value)
                operands[key] = self.constant(value, own) if constant else value
        return self.apply(name, operands, dtype)

    def _operand(self, node: fx.Node, indices: list[Index]) -> Value:
        if isinstance(node.meta["val"], torch.Tensor):
            return self.of(node, broadcast(indices, shape_of(node)))
        if node.target is torch.ops.aten.sym_size.int:
            return self.row_count()
        raise refuse(node, "is no tensor")
