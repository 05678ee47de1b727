"""Values of one token of a recurrence, as scalars and vectors.

A value is a vector where it depends on the loop that goes over lanes, else a scalar: what all lanes
have in common is computed once, and LLVM moves it in front of the loops that it does not depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx
from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.regions.index import Index, Variable, flatten
from graphwright.backends.regions.operands import dtype_name
from graphwright.backends.regions.shapes import Arguments
from graphwright.backends.scans.reads import static_sizes
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.loops import load, spread, store
from graphwright.backends.tvm.kernels.region_expressions import POINTWISE, VECTORS, cast, constant
from graphwright.backends.tvm.kernels.region_values import INT32, Inputs, Values
from graphwright.backends.tvm.kernels.vector import fma, lanes_of
from graphwright.ir.errors import BackendError

__all__ = ["Memory", "ScanValues"]


@dataclass(frozen=True)
class Memory:
    """Elements in memory: `buffer` from `first` on, in the order that `position` tells: of the
    position in the value, where a tile holds another part of it or in another order."""

    buffer: Expr
    first: Expr
    position: Callable[[Index], Index] = lambda position: position


class ScanValues(Values):
    """Values of the nodes of a body. memory: of its placeholders and of the nodes that are stored,
    all of which are read but `root`, if it is given: it is computed."""

    reductions: ClassVar[dict[str, Any]] = {}  # are stored

    def __init__(self, memory: Mapping[fx.Node, Memory], root: fx.Node | None, rows: Expr) -> None:
        super().__init__(Inputs({}, {}, rows))
        self._memory, self._root = memory, root
        self._starts: dict[Variable, Expr] = {}
        self._products: list[tuple[Expr, Expr, Expr]] = []  # (product, its factors)

    def lanes(self, low: int, high: int, start: Expr, width: int) -> Index:
        """An index in [low, high] that is `start` in the first of `width` lanes, and so on."""
        if width == 1:
            return self.variable(low, high, start)
        found = self.variable(low, high, T.ramp(start, 1, width))
        ((variable, _),) = found.terms
        assert isinstance(variable, Variable)
        self._starts[variable] = start
        return found

    def element(self, memory: Memory, position: Index) -> Expr:
        """The index of an element in the buffer: a scalar, a ramp where lanes lie one after the
        other, or a vector."""
        position = memory.position(position)
        inside = [a.index for a, _ in position.terms if not isinstance(a, Variable)]
        hidden = [a for index in inside for a in index.atoms()]
        varying = [
            atom for atom, _ in position.terms if isinstance(atom, Variable) and self._varies(atom)
        ]
        known = all(atom in self._starts for atom in varying)
        if not varying or not known or any(self._varies(a) for a in hidden):
            return memory.first + position.expr(INT32)
        rest = Index(frozenset(t for t in position.terms if t[0] not in varying), position.constant)
        first, stride = memory.first + rest.expr(INT32), 0
        for atom in varying:
            first = first + self._starts[atom] * position.coefficient(atom)
            stride += position.coefficient(atom)
        return T.ramp(first, stride, lanes_of(varying[0].expr)) if stride else first

    def _varies(self, atom: Any) -> bool:
        return isinstance(atom, Variable) and lanes_of(atom.expr) > 1

    def load(self, node: fx.Node, position: Index) -> Expr:
        memory = self._memory[node]
        loaded = memory.buffer[self.element(memory, position)]
        return cast(loaded, dtype_name(node.meta["val"].dtype))

    def of(self, node: Any, indices: list[Index]) -> Expr:
        if node.op != "placeholder" and node in self._memory and node is not self._root:
            position = flatten(indices, static_sizes(node))
            return self.recall((node, *indices), lambda: self.bind(self.load(node, position)))
        return super().of(node, indices)

    # ---- how values are written

    def bind(self, value: Expr) -> Expr:
        width, dtype = lanes_of(value), str(value.ty.dtype)
        if width == 1:
            bound = super().bind(value)
        elif dtype.startswith("bool") or isinstance(value, tirx.Broadcast):
            return value
        else:
            (register,) = registers(1, width, dtype.partition("x")[0])
            store(register, 0, value, width)
            bound = load(register, 0, width)
        if isinstance(value, tirx.Mul) and dtype.startswith("float32"):
            self._products.append((bound, value.a, value.b))
        return bound

    def constant(self, number: Any, dtype: str) -> Expr:
        return constant(number, dtype)

    def clamped(self, index: Index, most: int) -> Expr:
        value = index.expr(INT32)
        dtype = str(value.ty.dtype)
        return tirx.max(tirx.min(value, constant(most, dtype)), constant(0, dtype))

    def before(self, index: Index, end: int, yes: Expr, no: Expr) -> Expr:
        value = index.expr(INT32)
        condition = value < constant(end, str(value.ty.dtype))
        return tirx.Select(*_alike(condition, yes, no))

    def from_end(self, number: Expr, size: int) -> Expr:
        dtype = str(number.ty.dtype)
        return tirx.Select(number < constant(0, dtype), number + constant(size, dtype), number)

    def apply(self, name: str, operands: Arguments, dtype: str) -> Expr:
        if name not in POINTWISE:
            raise BackendError(f"'{name}' is no op that recurrences compute.")
        given = {key: value for key, value in operands.items() if _is_expression(value)}
        width = max((lanes_of(value) for value in given.values()), default=1)
        fused = self._fused(name, operands, dtype, width)
        if fused is not None:
            return fused
        if width == 1 or name in VECTORS:
            alike = dict(zip(given, _alike(*given.values()), strict=True))
            return POINTWISE[name](operands | alike)
        return _lane_by_lane(POINTWISE[name], operands, given, width)

    def _fused(self, name: str, operands: Arguments, dtype: str, width: int) -> Expr | None:
        """A sum with a product as one operation."""
        if name not in ("add", "sub") or dtype != "float32" or operands.get("alpha", 1) != 1:
            return None
        a, b = operands["self"], operands["other"]
        minus = constant(-1.0, "float32")
        for product, one, other in self._products:
            if product is b:
                one = one * spread(minus, lanes_of(one)) if name == "sub" else one
                factors, rest = (one, other), a
            elif product is a:
                factors, rest = (one, other), b * spread(minus, lanes_of(b)) if name == "sub" else b
            else:
                continue
            one, other, rest = _widened(width, *factors, rest)
            return fma(one, other, rest, width)
        return None


def _is_expression(value: Any) -> bool:
    return hasattr(value, "ty")


def _widened(width: int, *values: Expr) -> list[Expr]:
    return [value if lanes_of(value) == width else spread(value, width) for value in values]


def _alike(*values: Expr) -> list[Expr]:
    """The values with as many lanes as the widest has."""
    return _widened(max((lanes_of(value) for value in values), default=1), *values)


def _lane_by_lane(
    function: Callable[[Arguments], Expr], operands: Arguments, given: Mapping[str, Expr],
    width: int,
) -> Expr:  # fmt: skip
    """`function`, which is for scalars, of each lane."""
    parts: dict[str, tuple[Expr, str]] = {}
    for key, value in given.items():
        if lanes_of(value) > 1:
            own = str(value.ty.dtype).partition("x")[0]
            kept = "int8" if own == "bool" else own
            (register,) = registers(1, width, kept)
            store(register, 0, cast(value, kept), width)
            parts[key] = register, own
    (result,) = registers(1, width, "float32")
    dtype = ""
    for lane in range(width):
        scalars = {key: cast(part[lane], own) for key, (part, own) in parts.items()}
        found = function(operands | scalars)
        if not dtype:
            dtype = str(found.ty.dtype)
            (result,) = registers(1, width, "int8" if dtype == "bool" else dtype)
        T.buffer_store(result, cast(found, "int8" if dtype == "bool" else dtype), [lane])
    return cast(load(result, 0, width), dtype)
