"""How the forms of rows pass through operators: from an operand to the result, and back.

Each rule is for operators that keep rows apart; what has none is refused.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.frontend.row_parts.forms import (
    PRODUCTS,
    REDUCTIONS,
    TURNS,
    VIEWS,
    Form,
    NoFormError,
    rows_input,
    tensor_of,
)
from graphwright.ir.layout import size_of
from graphwright.ir.levels import POINTWISE

__all__ = ["cat_parts", "form_after", "forms_before", "turn_order"]

aten = torch.ops.aten
_SAME = {aten.clone.default, aten.alias.default, aten.detach.default, aten._to_copy.default,
         operator.getitem}  # fmt: skip


def form_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    """The form of what `node` makes of its operand `source`. Raises NoFormError."""
    return _rule(node).after(node, source, form)


def forms_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    """The form that each tensor operand of `node` must have for its result to be of `form`.

    None: the operand must be the same for all rows. Raises NoFormError.
    """
    return _rule(node).before(node, form)


@dataclass(frozen=True)
class _Rule:
    after: Callable[[fx.Node, fx.Node, Form], Form]
    before: Callable[[fx.Node, Form], dict[fx.Node, Form | None]]


def _rule(node: fx.Node) -> _Rule:
    rule = _RULES.get(node.target)
    if rule is None:
        raise NoFormError(f"{node.target} is not known to keep rows apart")
    return rule


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _dims(node: fx.Node, place: int) -> tuple[int, ...]:
    given: Any = node.args[place] if len(node.args) > place else None
    rank = tensor_of(_source(node)).dim()
    if given is None or given == []:
        return tuple(range(rank))
    return tuple(
        int(dim) % rank for dim in (given if isinstance(given, (list, tuple)) else [given])
    )


def _within_rows(node: fx.Node, form: Form, dims: tuple[int, ...]) -> None:
    if any(dim in form.lead for dim in dims):
        raise NoFormError(f"{node.target} works across rows")


# ---- elementwise: dimensions are aligned at the right


def _pointwise_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    shift = tensor_of(node).dim() - tensor_of(source).dim()
    made = Form(tuple(dim + shift for dim in form.lead))
    if made.rows(tensor_of(node)) != form.rows(tensor_of(source)):
        raise NoFormError(f"{node.target} repeats the rows of '{source}'")
    return made


def _pointwise_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    value = tensor_of(node)
    found: dict[fx.Node, Form | None] = {}
    for source in node.all_input_nodes:
        operand = tensor_of(source)
        if not isinstance(operand, torch.Tensor):
            raise NoFormError(f"{node.target} computes with the number '{source}'")
        shift = value.dim() - operand.dim()
        aligned = [dim - shift for dim in form.lead]
        sizes = tuple(size_of(operand.shape[dim]) if dim >= 0 else None for dim in aligned)
        if sizes == form.rows(value):
            found[source] = Form(tuple(aligned))
        elif all(size in (1, None) for size in sizes):
            found[source] = None
        else:
            raise NoFormError(f"{node.target} repeats some rows of '{source}'")
    return found


# ---- one operand, whose dimensions move


def _same_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    return form


def _same_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    return {_source(node): form}


def _regrouped(form: Form, before: torch.Tensor, after: torch.Tensor) -> Form:
    """The form of `after`, another view of `before`: as few trailing dimensions as hold a row."""
    if tuple(map(size_of, before.shape)) == tuple(map(size_of, after.shape)):
        return form
    if not form.in_front:
        raise NoFormError("a view of rows that do not come first")
    row = math.prod(form.sizes(before))
    size, first = 1, after.dim()
    while first and size < row:
        first -= 1
        if not isinstance(after.shape[first], int):
            break
        size *= int(after.shape[first])
    if size != row:
        raise NoFormError(f"rows of {row} elements are cut anew in {tuple(after.shape)}")
    made = Form(tuple(range(first)))
    if not made.lead:
        raise NoFormError("a view that joins the rows")
    return made


def _view_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    return _regrouped(form, tensor_of(source), tensor_of(node))


def _view_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    source = _source(node)
    return {source: _regrouped(form, tensor_of(node), tensor_of(source))}


def turn_order(node: fx.Node) -> list[int]:
    """Of each dimension of a transposed value: which it is of the operand."""
    rank = int(tensor_of(node).dim())
    if node.target is aten.permute.default:
        return list(_dims(node, 1))
    order = list(range(rank))
    first, second = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
    order[first], order[second] = order[second], order[first]
    return order


def _turn_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    order = turn_order(node)
    return Form(tuple(order.index(dim) for dim in form.lead))


def _turn_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    order = turn_order(node)
    return {_source(node): Form(tuple(order[dim] for dim in form.lead))}


def _inserted(node: fx.Node) -> int:
    rank = int(tensor_of(node).dim())
    return int(node.args[1]) % rank  # type: ignore[arg-type]


def _unsqueeze_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    new = _inserted(node)
    return Form(tuple(dim + (dim >= new) for dim in form.lead))


def _unsqueeze_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    new = _inserted(node)
    _within_rows(node, form, (new,))
    return {_source(node): Form(tuple(dim - (dim > new) for dim in form.lead))}


def _dropped(node: fx.Node) -> tuple[int, ...]:
    """The dimensions of the operand that the result lacks."""
    if node.target in REDUCTIONS:
        keeps = len(node.args) > 2 and node.args[2]
        return () if keeps else _dims(node, 1)
    if node.target is aten.squeeze.dim and tensor_of(_source(node)).dim() == tensor_of(node).dim():
        return ()
    return _dims(node, 1)


def _dropping_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    _within_rows(node, form, _dims(node, 1))
    gone = _dropped(node)
    return Form(tuple(dim - sum(each < dim for each in gone) for dim in form.lead))


def _dropping_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    source = _source(node)
    gone = _dropped(node)
    kept = [dim for dim in range(tensor_of(source).dim()) if dim not in gone]
    made = Form(tuple(kept[dim] for dim in form.lead))
    _within_rows(node, made, _dims(node, 1))
    return {source: made}


def _slice_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    _within_rows(node, form, (_dims(node, 1) if len(node.args) > 1 else (0,)))
    return form


def _slice_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    _slice_after(node, _source(node), form)
    return {_source(node): form}


def cat_parts(node: fx.Node) -> list[fx.Node]:
    """The operands of a concatenation that are not empty."""
    parts: Any = node.args[0]
    return [part for part in parts if 0 not in map(size_of, tensor_of(part).shape)]


def _cat_dim(node: fx.Node) -> int:
    rank = int(tensor_of(node).dim())
    return int(node.args[1]) % rank if len(node.args) > 1 else 0  # type: ignore[arg-type]


def _cat_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    _within_rows(node, form, (_cat_dim(node),))
    return form


def _cat_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    _within_rows(node, form, (_cat_dim(node),))
    return dict.fromkeys(cat_parts(node), form)


# ---- several operands with a place each


def _product_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    if source is not rows_input(node) or form != Form((0,)):
        raise NoFormError(f"{node.target} sums over rows")
    return form


def _product_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    if form != Form((0,)):
        raise NoFormError(f"{node.target} has its rows in front")
    rows = rows_input(node)
    return {source: form if source is rows else None for source in node.all_input_nodes}


def _norm_after(node: fx.Node, source: fx.Node, form: Form) -> Form:
    shape: Any = node.args[1]
    rank = tensor_of(source).dim()
    if source is not node.args[0]:
        raise NoFormError("a norm whose weight depends on the row")
    _within_rows(node, form, tuple(range(rank - len(shape), rank)))
    return form


def _norm_before(node: fx.Node, form: Form) -> dict[fx.Node, Form | None]:
    source = _source(node)
    _norm_after(node, source, form)
    return {each: form if each is source else None for each in node.all_input_nodes}


_RULES: dict[Any, _Rule] = {
    **{
        getattr(getattr(aten, packet), overload): _Rule(_pointwise_after, _pointwise_before)
        for packet, overload in (name.split(".") for name in sorted(POINTWISE))
    },
    **dict.fromkeys(_SAME, _Rule(_same_after, _same_before)),
    **dict.fromkeys(VIEWS, _Rule(_view_after, _view_before)),
    **dict.fromkeys(TURNS, _Rule(_turn_after, _turn_before)),
    **dict.fromkeys(
        (*REDUCTIONS, aten.select.int, aten.squeeze.dim), _Rule(_dropping_after, _dropping_before)
    ),
    **dict.fromkeys(PRODUCTS, _Rule(_product_after, _product_before)),
    aten.unsqueeze.default: _Rule(_unsqueeze_after, _unsqueeze_before),
    aten.slice.Tensor: _Rule(_slice_after, _slice_before),
    aten.cat.default: _Rule(_cat_after, _cat_before),
    aten.native_layer_norm.default: _Rule(_norm_after, _norm_before),
}
