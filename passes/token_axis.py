"""Where the token axis of every value lies, and the proof that no op mixes tokens.

A program may serve any mix of sequences in one step only if each token's values depend on that
token alone, caches aside. So every op must carry the token axis of its inputs to its output element
by element. An op that this analysis does not know is refused.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from graphwright.ir import PassError, Program
from graphwright.ir.levels import POINTWISE
from graphwright.ir.op import is_gw_op
from graphwright.passes.layout_chains import size_of

__all__ = ["find_token_axes"]

aten = torch.ops.aten
_TAKES_SIZES = {
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.expand.default,
    aten.full.default, aten.zeros.default, aten.ones.default, aten.new_ones.default,
    aten.new_zeros.default, aten.new_full.default, aten.slice.Tensor, aten.sym_size.int,
}  # fmt: skip
_CONSTANTS = {
    aten.full.default, aten.zeros.default, aten.ones.default, aten.new_ones.default,
    aten.new_zeros.default, aten.new_full.default, aten.expand.default, aten.full_like.default,
    aten.zeros_like.default, aten.ones_like.default,
}  # fmt: skip


class _Mixes(Exception):
    """Why an op does not keep tokens apart."""


def find_token_axes(program: Program) -> dict[fx.Node, int | None]:
    """The token axis of every node; None where the value is the same for all tokens.

    Raises PassError naming the first op, with its source line, that mixes tokens or is unknown.
    """
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    axes: dict[fx.Node, int | None] = {}
    for node in program.graph.nodes:
        try:
            axes[node] = _axis(node, axes, tokens)
        except _Mixes as reason:
            raise PassError(
                f"node '{node.name}' ({node.target}) {reason}{_source(node)}. Only attention may "
                "look at other tokens."
            ) from None
    return axes


def _axis(node: fx.Node, axes: dict[fx.Node, int | None], tokens: Any) -> int | None:
    if node.op == "placeholder":
        return 0 if node.target in ("tokens", "positions") else None
    if node.op == "get_attr":
        return None
    if node.op == "output":
        result: Any = node.args[0]
        value = result[0] if isinstance(result, (tuple, list)) else result
        if axes[value] != 0:
            raise _Mixes("does not return one row of logits a token")
        return None
    value = node.meta["val"]
    outputs = value if isinstance(value, (tuple, list)) else [value]
    if not any(isinstance(item, torch.Tensor) for item in outputs):
        return None  # a size; its users are checked
    _check_sizes(node)
    inputs = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    if node.target is operator.getitem:
        return axes[node.all_input_nodes[0]]
    if not any(axes[n] is not None for n in inputs):
        return _of_constant(node, tokens)
    axis = _rule(node)(node, axes)
    _check_result(outputs, axis, tokens)
    return axis


def _check_sizes(node: fx.Node) -> None:
    for argument in node.all_input_nodes:
        if isinstance(argument.meta.get("val"), torch.SymInt) and node.target not in _TAKES_SIZES:
            raise _Mixes(f"computes with the number of tokens '{argument.name}'")


def _of_constant(node: fx.Node, tokens: Any) -> int | None:
    """A value that no token went into: it may have no token axis, or equal entries along it."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return None
    found = [i for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
    if not found:
        return None
    if node.target not in _CONSTANTS or len(found) > 1 or size_of(value.shape[found[0]]) != tokens:
        raise _Mixes("numbers the tokens of this step, which are not those of one sequence")
    return found[0]


def _check_result(outputs: Iterable[Any], axis: int | None, tokens: Any) -> None:
    for value in outputs:
        if not isinstance(value, torch.Tensor):
            continue
        symbolic = [i for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
        if symbolic != [axis] or size_of(value.shape[symbolic[0]]) != tokens:
            raise _Mixes(f"gives {tuple(value.shape)}, which is not one row a token")


# ---- rules: (node, axes of its inputs) -> token axis of its output

_Axes = dict[fx.Node, int | None]
_Rule = Callable[[fx.Node, _Axes], int]


def _rule(node: fx.Node) -> _Rule:
    target: Any = node.target
    if is_gw_op(target):
        name = target._schema.name.split("::")[1]
        if name in _GW_RULES:
            return _GW_RULES[name]
    else:
        name = str(target).removeprefix("aten.")
        if name in _RULES:
            return _RULES[name]
        if name in POINTWISE:
            return _pointwise
    if name in ("attention", "scaled_dot_product_attention.default"):
        raise _Mixes("is attention that was not recognised as attention over tokens")
    raise _Mixes("is an op whose effect on the token axis is not known")


def _first(node: fx.Node, axes: _Axes) -> tuple[torch.Tensor, int]:
    """The first argument and its token axis; no other argument may have one."""
    source: Any = node.args[0]
    axis = axes.get(source)
    others = [n for n in node.all_input_nodes if n is not source and axes[n] is not None]
    if axis is None or others:
        raise _Mixes("takes a value for each token where it should not")
    value: torch.Tensor = source.meta["val"]
    return value, axis


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _pointwise(node: fx.Node, axes: _Axes) -> int:
    found = set()
    for source in node.all_input_nodes:
        axis = axes[source]
        if axis is not None:
            found.add(axis - source.meta["val"].dim())
    if len(found) != 1:
        raise _Mixes("combines every token with every other one")
    aligned = found.pop()
    for source in node.all_input_nodes:
        value = source.meta["val"]
        if axes[source] is not None or not isinstance(value, torch.Tensor):
            continue
        if value.dim() >= -aligned and size_of(value.shape[aligned]) != 1:
            raise _Mixes(f"gives each token of the step its own part of '{source.name}'")
    return int(node.meta["val"].dim() + aligned)


def _permute(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    dims = [int(dim) % value.dim() for dim in node.args[1]]  # type: ignore[union-attr, arg-type]
    return dims.index(axis)


def _transpose(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    dims: tuple[Any, ...] = node.args[1:3] if node.target is aten.transpose.int else (0, -1)
    one, two = (int(dim) % value.dim() for dim in dims)
    return {one: two, two: one}.get(axis, axis)


def _reshape(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    result = node.meta["val"].shape
    new = [i for i, size in enumerate(result) if size_of(size) == size_of(value.shape[axis])]
    for candidate in new:
        sizes = [size_of(s) for s in (*value.shape[:axis], *result[:candidate])]
        if all(isinstance(s, int) for s in sizes) and math.prod(sizes[:axis]) == math.prod(
            sizes[axis:]
        ):
            return candidate
    raise _Mixes("reshapes tokens into another axis")


def _unsqueeze(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    dim = int(node.args[1]) % (value.dim() + 1)  # type: ignore[call-overload]
    return axis + int(dim <= axis)


def _squeeze(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    dims = _dims(_argument(node, 1, "dim"), value.dim())
    return axis - sum(dim < axis and size_of(value.shape[dim]) == 1 for dim in dims)


def _expand(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    return int(axis + node.meta["val"].dim() - value.dim())


def _repeat(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    counts: Any = node.args[1]
    axis += len(counts) - value.dim()
    if counts[axis] != 1:
        raise _Mixes("repeats the tokens")
    return axis


def _slice(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    dim = int(_argument(node, 1, "dim", 0)) % value.dim()
    if dim == axis and size_of(node.meta["val"].shape[dim]) != size_of(value.shape[dim]):
        raise _Mixes("takes some of the tokens")
    return axis


def _select(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    dim = int(node.args[1]) % value.dim()  # type: ignore[call-overload]
    if dim == axis:
        raise _Mixes("takes one of the tokens")
    return axis - int(dim < axis)


def _along(position: int, default: Any = None) -> _Rule:
    """Ops that work along one dim (argument `position`) and keep the rank."""

    def rule(node: fx.Node, axes: _Axes) -> int:
        value, axis = _first(node, axes)
        dim = _argument(node, position, "dim", default)
        if axis in _dims(dim, value.dim()):
            raise _Mixes("works along the token axis")
        return axis

    return rule


def _reduction(position: int = 1, keepdim: int = 2) -> _Rule:
    """Ops that reduce over dims (argument `position`)."""

    def rule(node: fx.Node, axes: _Axes) -> int:
        value, axis = _first(node, axes)
        dims = _dims(_argument(node, position, "dim"), value.dim())
        if axis in dims:
            raise _Mixes("reduces over the token axis")
        if _argument(node, keepdim, "keepdim", False):
            return axis
        return axis - sum(dim < axis for dim in dims)

    return rule


def _dims(dims: Any, rank: int) -> list[int]:
    """A dim or dims, counted from the front; none means all."""
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(rank))
    return [int(dim) % rank for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]


def _unbind(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    dim = int(_argument(node, 1, "dim", 0)) % value.dim()
    if dim == axis:
        raise _Mixes("takes the tokens apart")
    return axis - int(dim < axis)


def _cat(node: fx.Node, axes: _Axes) -> int:
    parts: Any = node.args[0]
    found = {axes[part] for part in parts}
    if len(found) != 1:
        raise _Mixes("joins values of some tokens with others")
    axis: Any = found.pop()
    rank = node.meta["val"].dim()
    dim = int(_argument(node, 1, "dim", 0)) % rank
    if node.target is aten.stack.default:
        return int(axis + int(dim <= axis))
    if dim == axis:
        raise _Mixes("joins values along the token axis")
    return int(axis)


def _pad(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    pads: Any = node.args[1]
    behind = value.dim() - 1 - axis
    if any(pads[2 * behind : 2 * behind + 2]):
        raise _Mixes("pads or shifts the tokens")
    return axis


def _linear(node: fx.Node, axes: _Axes) -> int:
    source: Any = node.args[0]
    axis = axes[source]
    for other in node.all_input_nodes:
        if other is not source and axes[other] is not None:
            same = axes[other] == axis and other.meta["val"].dim() == source.meta["val"].dim()
            if not (is_gw_op(node.target) and same and other is not node.args[1]):
                raise _Mixes("takes a value for each token where it should not")
    if axis is None or axis == source.meta["val"].dim() - 1:
        raise _Mixes("contracts the token axis")
    return axis


def _matmul(node: fx.Node, axes: _Axes) -> int:
    left, right = node.args[:2]
    ranks = [n.meta["val"].dim() for n in (left, right)]  # type: ignore[union-attr]
    if min(ranks) < 2:
        raise _Mixes("is a product with a vector")
    rank = node.meta["val"].dim()
    one, two = (
        None if axes[n] is None else axes[n] - r  # type: ignore[index, operator]
        for n, r in zip((left, right), ranks, strict=True)
    )
    if one == -1 or two == -2:
        raise _Mixes("contracts the token axis")
    if one is not None and two is not None and (one != two or one > -3):
        raise _Mixes("multiplies every token with every other one")
    aligned: Any = two if one is None else one
    return int(rank + aligned)


def _addmm(node: fx.Node, axes: _Axes) -> int:
    bias, left, right = node.args[:3]
    if axes[left] != 0 or axes[right] is not None or axes[bias] is not None:  # type: ignore[index]
        raise _Mixes("takes a value for each token where it should not")
    return 0


def _layer_norm(node: fx.Node, axes: _Axes) -> int:
    value, axis = _first(node, axes)
    shape: Any = node.args[1]
    if axis >= value.dim() - len(shape):
        raise _Mixes("normalizes over the token axis")
    return axis


def _embedding(node: fx.Node, axes: _Axes) -> int:
    table, ids = node.args[:2]
    axis = axes[ids]  # type: ignore[index]
    if axes[table] is not None or axis is None:  # type: ignore[index]
        raise _Mixes("looks up a table of tokens")
    return axis


def _index_select(node: fx.Node, axes: _Axes) -> int:
    source, dim, index = node.args[:3]
    value = source.meta["val"]  # type: ignore[union-attr]
    dim = int(dim) % value.dim()  # type: ignore[call-overload]
    axis, by = axes[source], axes[index]  # type: ignore[index]
    if axis is None and by is not None:
        return dim
    if axis is None or by is not None or dim == axis:
        raise _Mixes("chooses among the tokens")
    return axis


def _index(node: fx.Node, axes: _Axes) -> int:
    source: Any = node.args[0]
    indices: Any = node.args[1]
    axis = axes[source]
    given = [(i, index) for i, index in enumerate(indices) if index is not None]
    if axis is None:
        if [i for i, _ in given] != list(range(len(given))):
            raise _Mixes("indexes a table in an unknown way")
        found = {axes[n] - n.meta["val"].dim() for _, n in given if axes[n] is not None}  # type: ignore[operator]
        if len(found) != 1:
            raise _Mixes("combines every token with every other one")
        rank = max(n.meta["val"].dim() for _, n in given)
        return int(rank + found.pop())
    if len(given) != 1 or axes[given[0][1]] is not None or given[0][0] == axis:
        raise _Mixes("chooses among the tokens")
    at, index = given[0]
    if index.meta["val"].dtype == torch.bool:
        raise _Mixes("indexes by a condition")
    return int(axis + (index.meta["val"].dim() - 1 if at < axis else 0))


def _gather(node: fx.Node, axes: _Axes) -> int:
    """Along dim: a table looked up by each token, or each token's own row."""
    source, dim, index = node.args[:3]
    axis = axes[index]  # type: ignore[index]
    along = int(dim) % node.meta["val"].dim() == axis  # type: ignore[call-overload]
    if axis is None or axes[source] != (None if along else axis):  # type: ignore[index]
        raise _Mixes("chooses among the tokens")
    return axis


def _row_wise(node: fx.Node, axes: _Axes) -> int:
    """gw ops whose tensors all have the token axis first or are weights."""
    if any(axes[n] not in (None, 0) for n in node.all_input_nodes):
        raise _Mixes("expects one row a token")
    return 0


def _last_axis(node: fx.Node, axes: _Axes) -> int:
    """gw ops over the last axis of inputs of the same shape."""
    axis = _pointwise(node, axes)
    if axis == node.args[0].meta["val"].dim() - 1:  # type: ignore[union-attr]
        raise _Mixes("normalizes over the token axis")
    return axis


_RULES: dict[str, _Rule] = {
    "permute.default": _permute, "transpose.int": _transpose, "t.default": _transpose,
    "reshape.default": _reshape, "view.default": _reshape, "_unsafe_view.default": _reshape,
    "flatten.using_ints": _reshape, "unsqueeze.default": _unsqueeze, "squeeze.dim": _squeeze,
    "squeeze.dims": _squeeze, "expand.default": _expand, "repeat.default": _repeat,
    "slice.Tensor": _slice, "select.int": _select, "cat.default": _cat, "stack.default": _cat,
    "split.Tensor": _along(2, 0), "split_with_sizes.default": _along(2, 0),
    "chunk.default": _along(2, 0), "unbind.int": _unbind, "flip.default": _along(1),
    "repeat_interleave.self_int": _along(2), "constant_pad_nd.default": _pad,
    "clone.default": _pointwise, "alias.default": _pointwise, "detach.default": _pointwise,
    "contiguous.default": _pointwise, "type_as.default": _pointwise,
    "full_like.default": _pointwise, "zeros_like.default": _pointwise,
    "ones_like.default": _pointwise, "mean.dim": _reduction(), "sum.dim_IntList": _reduction(),
    "amax.default": _reduction(), "amin.default": _reduction(), "argmax.default": _reduction(),
    "max.dim": _reduction(), "var.correction": _reduction(),
    "linalg_vector_norm.default": _reduction(2, 3), "softmax.int": _along(1),
    "_softmax.default": _along(1), "log_softmax.int": _along(1), "cumsum.default": _along(1),
    "topk.default": _along(2, -1), "sort.default": _along(1, -1), "linear.default": _linear,
    "matmul.default": _matmul, "bmm.default": _matmul, "mm.default": _matmul,
    "addmm.default": _addmm, "layer_norm.default": _layer_norm, "rms_norm.default": _layer_norm,
    "embedding.default": _embedding, "index_select.default": _index_select,
    "index.Tensor": _index, "gather.default": _gather,
}  # fmt: skip
_GW_RULES: dict[str, _Rule] = {
    "rope": _row_wise, "cached_attention": _row_wise, "linear": _linear,
    "quantized_linear": _linear, "embedding": _embedding, "gated_act": _pointwise,
    "rms_norm": _last_axis, "layer_norm": _last_axis, "add_rms_norm": _last_axis,
    "add_layer_norm": _last_axis,
}  # fmt: skip


def _source(node: fx.Node) -> str:
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    return f" (from {' '.join(line.strip() for line in trace[-2:])})" if trace else ""
