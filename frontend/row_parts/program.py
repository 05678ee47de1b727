"""A row part as a Program: rows in, rows out, its weights by the places of the caller's arguments.

The input `tokens` is float32 [T, F]: the rows of all inputs of the part side by side, T rows of
whatever sequences. The result is float32 [T, G], the rows of all its outputs side by side.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from graphwright.frontend.row_parts.find import Found, RowPart
from graphwright.frontend.row_parts.form_rules import (
    cat_parts,
    forms_before,
    turn_order,
)
from graphwright.frontend.row_parts.forms import (
    LAYOUT,
    PRODUCTS,
    REDUCTIONS,
    TURNS,
    Form,
    rows_input,
    tensor_of,
)
from graphwright.ir.inference import Inference
from graphwright.ir.program import ModelInfo, Program, lazy_module
from graphwright.ir.weights import Expression, Weight, WeightStore

__all__ = ["Given", "RowSpace", "Tensors", "part_program"]

aten = torch.ops.aten
_EXAMPLE_ROWS = 5
_MOVES = LAYOUT | {aten._to_copy.default, operator.getitem}
_ALONG_FEATURES = REDUCTIONS | {aten.slice.Tensor, aten.select.int}


@dataclass
class Tensors:
    """The arguments of a call that weights are read from while they are packed."""

    values: Sequence[torch.Tensor] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Given(Weight):
    """The tensor at `place` of the caller's arguments, whichever they are at the time."""

    place: int
    tensors: Tensors = field(compare=False)
    name: str = ""

    def load(self) -> torch.Tensor:
        return self.tensors.values[self.place].detach()

    def describe(self) -> str:
        return self.name or f"weight {self.place}"

    def __repr__(self) -> str:
        return f"Given({self.place})"


class RowSpace:
    """The number of rows, T, and what operators make of them: shared by the programs of a graph, so
    that calls in layers that are alike are inferred once."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=False)
        context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
        fake = self.mode.from_tensor(torch.empty(_EXAMPLE_ROWS), symbolic_context=context)
        self.rows: Any = fake.shape[0]
        self.inference = Inference()


def part_program(
    part: RowPart, found: Found, names: Mapping[fx.Node, str], space: RowSpace | None = None
) -> tuple[Program, Tensors, list[fx.Node]]:
    """The program at level CAPTURED, what its weights are read from, and the nodes of the graph
    whose tensors are to be put there, in order.

    names: of weights, as recipes search them; others are numbered.
    """
    return _Writer(part, found, names, space or RowSpace()).write()


class _Writer:
    def __init__(
        self, part: RowPart, found: Found, names: Mapping[fx.Node, str], space: RowSpace
    ) -> None:
        self._part, self._found, self._names = part, found, names
        self._values: dict[fx.Node, fx.Node] = {}
        self._inputs: dict[tuple[fx.Node, Form], fx.Node] = {}
        self._constants: dict[fx.Node, fx.Node] = {}
        self._sources: list[fx.Node] = []
        self._tensors = Tensors()
        width = sum(math.prod(form.sizes(node.meta["val"])) for node, form in part.inputs)
        graph = fx.Graph()
        tokens = graph.placeholder("tokens")
        with space.mode:
            tokens.meta["val"] = torch.empty(space.rows, width)
        graph.output(tokens)
        self._program = Program(
            lazy_module(nn.Module(), graph),
            WeightStore(),
            ModelInfo("part", vocab_size=0),
            space.mode,
            dims={str(space.rows): "T"},
            _inference=space.inference,
        )
        self._tokens = self._program.placeholder("tokens")
        self._end = self._program.graph.output_node()

    def write(self) -> tuple[Program, Tensors, list[fx.Node]]:
        self._read_inputs()
        for node in self._part.nodes:
            self._values[node] = self._emit(node)
        rows = [self._row(self._values[node]) for node in self._part.outputs]
        result = rows[0] if len(rows) == 1 else self._call(aten.cat.default, rows, -1)
        self._end.args = (result,)
        self._program.clean()
        return self._program, self._tensors, self._sources

    # ---- inputs and weights

    def _read_inputs(self) -> None:
        first = 0
        for node, form in self._part.inputs:
            sizes = form.sizes(node.meta["val"])
            last = first + math.prod(sizes)
            rows = self._tokens
            if len(self._part.inputs) > 1:
                rows = self._call(aten.slice.Tensor, rows, 1, first, last)
            self._inputs[node, form] = self._reshape(rows, sizes)
            first = last

    def _constant(self, node: fx.Node) -> fx.Node:
        if node not in self._constants:
            weight = self._weight(node)
            name = self._names.get(node) or f"weight_{len(self._constants)}"
            self._constants[node] = self._program.add_weight(name, weight)
        return self._constants[node]

    def _weight(self, node: fx.Node) -> Weight:
        """Float weights as float32: that is what is computed in, whatever they are stored in."""
        value = node.meta["val"]
        weight = self._stored(node)
        if value.dtype.is_floating_point and value.dtype != torch.float32:
            return Expression.of(aten._to_copy.default, weight, dtype=torch.float32)
        return weight

    def _stored(self, node: fx.Node) -> Weight:
        value = node.meta["val"]
        if node.op != "call_function":
            if node not in self._sources:
                self._sources.append(node)
            shape = tuple(int(size) for size in value.shape)
            place = self._sources.index(node)
            return Given(shape, value.dtype, place, self._tensors, self._names.get(node, ""))
        assert callable(node.target)
        given = (node.args, node.kwargs)
        args, kwargs = pytree.tree_map_only(fx.Node, self._stored, given)
        shape = tuple(int(size) for size in value.shape)
        return Expression(shape, value.dtype, node.target, tuple(args), dict(kwargs))

    # ---- operators

    def _emit(self, node: fx.Node) -> fx.Node:
        form, target = self._found.forms[node], node.target
        if target in PRODUCTS:
            return self._product(node)
        if target is aten.native_layer_norm.default:
            return self._norm(node)
        if target in _MOVES:
            return self._moved(node, form)
        if target is aten.cat.default:
            rows = [self._operand(each, form) for each in cat_parts(node)]
            dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
            return self._call(target, rows, self._feature(node, form, dim))
        if target in _ALONG_FEATURES:
            return self._along_features(node)
        return self._pointwise(node, form)

    def _product(self, node: fx.Node) -> fx.Node:
        rows = rows_input(node)
        x = self._operand(rows, Form((0,)))
        place = PRODUCTS[node.target]
        matrix: Any = node.args[place + 1]
        bias: Any = node.args[0] if place else None
        if matrix.target is aten.t.default:
            weight = self._constant(matrix.args[0])
        else:
            weight = self._call(aten.permute.default, self._constant(matrix), [1, 0])
        return self._call(
            aten.linear.default, x, weight, *([] if bias is None else [self._constant(bias)])
        )

    def _norm(self, node: fx.Node) -> fx.Node:
        x, shape, weight, bias, eps = node.args
        assert isinstance(x, fx.Node)
        operands = [self._constant(w) if isinstance(w, fx.Node) else None for w in (weight, bias)]
        return self._call(
            aten.layer_norm.default, self._operand(x, self._form_of(x, node)), shape, *operands, eps
        )

    def _moved(self, node: fx.Node, form: Form) -> fx.Node:
        """A view, a cast or a copy: the same elements, perhaps in features of other sizes."""
        source = node.all_input_nodes[0]
        before = self._form_of(source, node)
        value, order = self._operand(source, before), _moved_features(node, form, before)
        if order is not None:
            value = self._call(aten.permute.default, value, [0, *(1 + each for each in order)])
        return self._reshape(value, form.sizes(tensor_of(node)))

    def _along_features(self, node: fx.Node) -> fx.Node:
        source = node.all_input_nodes[0]
        form = self._form_of(source, node)
        args: list[Any] = [self._operand(source, form), *node.args[1:]]
        given: Any = args[1] if len(args) > 1 else 0
        dims = list(given) if isinstance(given, (list, tuple)) else [given]
        if isinstance(given, (list, tuple)) and not dims:
            dims = list(form.features(tensor_of(source)))
        mapped = [self._feature(source, form, int(dim)) for dim in dims]
        place: Any = mapped if isinstance(given, (list, tuple)) else mapped[0]
        args[1:2] = [place]
        kwargs = {key: value for key, value in node.kwargs.items() if key != "dtype"}
        assert callable(node.target)
        return self._call(node.target, *args, **kwargs)

    def _pointwise(self, node: fx.Node, form: Form) -> fx.Node:
        value = tensor_of(node)
        rank = len(form.features(value))

        def operand(source: fx.Node) -> fx.Node:
            if source in self._found.constants:
                return self._broadcast(source, value, form)
            made = self._operand(source, self._aligned(source, value, form))
            missing = rank - (made.meta["val"].dim() - 1)
            sizes = [1] * missing + list(made.meta["val"].shape[1:])
            return self._reshape(made, sizes) if missing else made

        args = map_arg(node.args, operand)
        kwargs = map_arg(node.kwargs, operand)
        assert callable(node.target)
        return self._call(node.target, *args, **kwargs)

    def _broadcast(self, source: fx.Node, value: torch.Tensor, form: Form) -> fx.Node:
        """A weight without the dimensions that would count rows, all of one entry."""
        constant = self._constant(source)
        weight = source.meta["val"]
        shift = value.dim() - weight.dim()
        kept = [int(weight.shape[d - shift]) for d in form.features(value) if d >= shift]
        if len(kept) == weight.dim():
            return constant
        return self._call(aten.reshape.default, constant, kept)

    # ---- helpers

    def _aligned(self, source: fx.Node, value: torch.Tensor, form: Form) -> Form:
        shift = value.dim() - source.meta["val"].dim()
        return Form(tuple(dim - shift for dim in form.lead))

    def _form_of(self, source: fx.Node, user: fx.Node) -> Form:
        """The form in which `user` reads `source`."""
        form = forms_before(user, self._found.forms[user])[source]
        assert form is not None
        return form

    def _operand(self, source: fx.Node, form: Form) -> fx.Node:
        """The rows of `source`: [T, *features]."""
        known = self._values.get(source)
        return known if known is not None else self._inputs[source, form]

    def _feature(self, node: fx.Node, form: Form, dim: int) -> int:
        value = tensor_of(node)
        return 1 + form.features(value).index(dim % value.dim())

    def _row(self, node: fx.Node) -> fx.Node:
        return self._reshape(node, [math.prod(node.meta["val"].shape[1:])])

    def _reshape(self, node: fx.Node, sizes: Sequence[int]) -> fx.Node:
        if list(node.meta["val"].shape[1:]) == list(sizes):
            return node
        return self._call(aten.reshape.default, node, [-1, *sizes])

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self._program.call(self._end, target, *args, **kwargs)


def _moved_features(node: fx.Node, form: Form, before: Form) -> list[int] | None:
    """Where each feature of a transposed value comes from; None where their order is kept."""
    if node.target not in TURNS:
        return None
    order = turn_order(node)
    features = before.features(tensor_of(node.all_input_nodes[0]))
    came = [features.index(order[dim]) for dim in form.features(tensor_of(node))]
    return None if came == sorted(came) else came
