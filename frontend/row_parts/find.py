"""Finding the parts of a graph that work row by row around products with weights.

Starting at the matrix products, forms (forms.py) are carried to the operators around them, for as
long as these keep rows apart. What is found falls into parts that can each run in one piece.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import fx

from graphwright.frontend.row_parts.form_rules import (
    form_after,
    forms_before,
)
from graphwright.frontend.row_parts.forms import (
    LAYOUT,
    PRODUCTS,
    VIEWS,
    Form,
    NoFormError,
    rows_input,
    tensor_of,
)
from graphwright.frontend.row_parts.spread import spread_operands
from graphwright.ir.layout import size_of

__all__ = ["Found", "RowPart", "find_row_parts"]

aten = torch.ops.aten
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class RowPart:
    """Operators that run together, in graph order, and what they exchange with the rest.

    inputs: values from outside, with the form in which each is read. outputs: those of the
    operators that others read. constants: weights, and what is computed of weights only. numbers:
    sizes that the operators read, or that their outputs have and no input.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[tuple[fx.Node, Form], ...]
    outputs: tuple[fx.Node, ...]
    constants: tuple[fx.Node, ...]
    numbers: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class Found:
    """forms: of every operator in a part. refused: products in no part, and why."""

    parts: tuple[RowPart, ...]
    forms: dict[fx.Node, Form]
    constants: frozenset[fx.Node]
    refused: dict[fx.Node, str]


def find_row_parts(graph: fx.Graph, weights: Iterable[fx.Node]) -> Found:
    """The parts of a functional ATen graph, in an order in which they can run.

    The graph is changed where an operand is the same for several rows (spread.py).
    weights: the placeholders that stand for parameters and buffers, which stay as they are from
    call to call.
    """
    constants = _constants(graph, weights)
    refused: dict[fx.Node, str] = {}
    forms = _forms(graph, constants, refused)
    while spread_operands(graph, forms, constants):
        refused.clear()
        forms = _forms(graph, constants, refused)
    _drop_outer_layout(graph, forms)
    parts = _parts(graph, forms, constants)
    return Found(tuple(parts), forms, constants, refused)


def _constants(graph: fx.Graph, weights: Iterable[fx.Node]) -> frozenset[fx.Node]:
    """Weights, tensors that the graph holds, and views and simple functions of them."""
    found = {node for node in weights if isinstance(node.meta.get("val"), torch.Tensor)}
    for node in graph.nodes:
        value = node.meta.get("val")
        if (node.op == "get_attr" and isinstance(value, torch.Tensor)) or (
            node.op == "call_function"
            and isinstance(value, torch.Tensor)
            and isinstance(node.target, torch._ops.OpOverload)
            and torch.Tag.nondeterministic_seeded not in node.target.tags
            and node.all_input_nodes
            and all(source in found for source in node.all_input_nodes)
            and all(isinstance(size, int) for size in value.shape)
        ):
            found.add(node)
    return frozenset(found)


def _forms(
    graph: fx.Graph, constants: frozenset[fx.Node], refused: dict[fx.Node, str]
) -> dict[fx.Node, Form]:
    forms: dict[fx.Node, Form] = {}
    pending: deque[tuple[fx.Node, Form]] = deque()
    barred = set()
    for node in graph.nodes:
        if node.target in PRODUCTS:
            if (why := _no_product(node, constants)) is not None:
                refused[node] = why
                barred.add(node)
            else:
                pending.append((node, Form((0,))))
    while pending:
        node, form = pending.popleft()
        if node in forms or node in barred or not _may_join(node, constants):
            continue
        try:
            before = forms_before(node, form)
            _check_operands(before, forms, constants)
            form.sizes(tensor_of(node))
        except NoFormError as error:
            if node.target in PRODUCTS:
                refused[node] = str(error)
            continue
        forms[node] = form
        pending.extend((s, f) for s, f in before.items() if f is not None and s not in constants)
        for user in node.users:
            try:  # first of all, as what is computed of rows fits more often than what they are of
                pending.appendleft((user, form_after(user, node, form)))
            except NoFormError:
                continue
    _drop_mismatches(forms, constants, refused)
    return forms


def _drop_mismatches(
    forms: dict[fx.Node, Form], constants: frozenset[fx.Node], refused: dict[fx.Node, str]
) -> None:
    """A value that two operators ask for in two forms has the first; the other one is left out."""
    while True:
        dropped = {}
        for node, form in forms.items():
            try:
                _check_operands(forms_before(node, form), forms, constants)
            except NoFormError as error:
                dropped[node] = str(error)
            several = isinstance(node.meta["val"], (tuple, list))
            if several and not all(user in forms for user in node.users):
                dropped[node] = f"the results of '{node}' are read in another form"
            if node.target is operator.getitem and node.args[0] not in forms:
                dropped[node] = f"'{node.args[0]}' is in no part"
        if not dropped:
            return
        for node, why in dropped.items():
            del forms[node]
            if node.target in PRODUCTS:
                refused[node] = why


def _no_product(node: fx.Node, constants: frozenset[fx.Node]) -> str | None:
    rows, place = rows_input(node), PRODUCTS[node.target]
    matrix: Any = node.args[place + 1]
    bias: Any = node.args[0] if place else None
    if rows in constants:
        return "both operands are weights"
    if matrix not in constants:
        return f"'{matrix}' is no weight"
    if bias is not None and (bias not in constants or bias.meta["val"].dim() != 1):
        return f"'{bias}', which is added, is no weight with a number for each output"
    if bias is not None and bias.meta["val"].shape[0] != tensor_of(node).shape[1]:
        return f"'{bias}', which is added, has one number for all outputs"
    if node.kwargs:
        return f"it is scaled by {dict(node.kwargs)}"
    if tensor_of(node).dtype not in _FLOATS or tensor_of(node).device.type != "cpu":
        return f"it is {tensor_of(node).dtype} on {tensor_of(node).device}"
    return None


def _may_join(node: fx.Node, constants: frozenset[fx.Node]) -> bool:
    value = tensor_of(node)
    if node.op != "call_function" or node in constants or not isinstance(value, torch.Tensor):
        return False
    if value.dtype not in _FLOATS or value.device.type != "cpu":
        return False
    if node.target is aten.native_layer_norm.default:
        return all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)
    if node.target is operator.getitem:
        source = node.all_input_nodes[0]
        return source.target is aten.native_layer_norm.default and _may_join(source, constants)
    numbers = [s for s in node.all_input_nodes if not isinstance(tensor_of(s), torch.Tensor)]
    return not numbers or node.target in VIEWS


def _check_operands(
    before: dict[fx.Node, Form | None], forms: dict[fx.Node, Form], constants: frozenset[fx.Node]
) -> None:
    """Operands inside a part have the form they are asked for; others are read in any."""
    for source, form in before.items():
        if source in constants:
            if form is not None:
                raise NoFormError(f"'{source}' is a weight with a row for each token")
        elif form is None:
            raise NoFormError(f"'{source}' is the same for all rows, and no weight")
        elif source in forms and forms[source] != form:
            raise NoFormError(f"'{source}' counts its rows otherwise")
        elif tensor_of(source).dtype not in _FLOATS:
            raise NoFormError(f"'{source}' is {tensor_of(source).dtype}")
        else:
            form.sizes(tensor_of(source))


def _drop_outer_layout(graph: fx.Graph, forms: dict[fx.Node, Form]) -> None:
    """What only moves elements on the way in or out is left outside: there it costs nothing."""
    while True:
        stage = _stages(graph, forms)

        def joined(node: fx.Node, other: fx.Node) -> bool:
            return other in forms and stage[other] == stage[node]  # noqa: B023

        outer = [
            node
            for node in forms
            if node.target in LAYOUT
            and not (
                any(joined(node, source) for source in node.all_input_nodes)
                and any(joined(node, user) for user in node.users)
            )
        ]
        if not outer:
            return
        for node in outer:
            del forms[node]


def _stages(graph: fx.Graph, forms: dict[fx.Node, Form]) -> dict[fx.Node, int]:
    """How often a path to each node leaves the operators with a form. A path that does so and comes
    back is at a greater stage then, so that operators of one stage never wait for each other's
    results by way of others."""
    stage: dict[fx.Node, int] = {}
    for node in graph.nodes:
        steps = [stage[s] + (s in forms and node not in forms) for s in node.all_input_nodes]
        stage[node] = max(steps, default=0)
    return stage


def _parts(
    graph: fx.Graph, forms: dict[fx.Node, Form], constants: frozenset[fx.Node]
) -> list[RowPart]:
    """Operators of one stage that hang together."""
    stage = _stages(graph, forms)
    order = {node: number for number, node in enumerate(graph.nodes)}
    joined = nx.Graph()
    joined.add_nodes_from(forms)
    joined.add_edges_from(
        (source, node)
        for node in forms
        for source in node.all_input_nodes
        if source in forms and stage[source] == stage[node]
    )
    groups = [sorted(group, key=order.__getitem__) for group in nx.connected_components(joined)]
    groups.sort(key=lambda group: (stage[group[0]], order[group[0]]))
    return [
        _part(group, forms, constants)
        for group in groups
        if any(node.target in PRODUCTS for node in group)
    ]


def _part(
    group: list[fx.Node], forms: dict[fx.Node, Form], constants: frozenset[fx.Node]
) -> RowPart:
    members = set(group)
    inputs: dict[tuple[fx.Node, Form], None] = {}
    used: dict[fx.Node, None] = {}
    numbers: dict[fx.Node, None] = {}
    for node in group:
        for source in node.all_input_nodes:
            if not isinstance(tensor_of(source), torch.Tensor):
                numbers[source] = None
        for source, form in forms_before(node, forms[node]).items():
            if source in constants:
                used[source] = None
            elif source not in members:
                assert form is not None
                inputs[source, form] = None
    outputs = [node for node in group if any(user not in members for user in node.users)]
    known = {s for node, form in inputs for s in form.rows(node.meta["val"])}
    for placeholder in group[0].graph.find_nodes(op="placeholder"):
        size = placeholder.meta.get("val")
        if (
            isinstance(size, torch.SymInt)
            and size_of(size) not in known
            and any(size_of(size) in forms[node].rows(tensor_of(node)) for node in outputs)
        ):
            numbers[placeholder] = None
    return RowPart(tuple(group), tuple(inputs), tuple(outputs), tuple(used), tuple(numbers))
