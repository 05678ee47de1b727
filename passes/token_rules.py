"""How each op carries the token axis from its inputs to its output, or why it does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.levels import POINTWISE
from graphwright.ir.op import is_gw_op

__all__ = ["MixesTokensError", "TokenAxes", "TokenRule", "along", "reduction", "token_rule"]

aten = torch.ops.aten

TokenAxes = dict[fx.Node, int | None]
TokenRule = Callable[[fx.Node, TokenAxes], int]
"""From a node, at least one of whose inputs has a token axis, to the token axis of its output."""


class MixesTokensError(Exception):
    """Why an op does not keep tokens apart: the end of a sentence about its node."""


def token_rule(node: fx.Node) -> TokenRule:
    """The rule for the op of `node`. Raises MixesTokensError when there is none."""
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
        raise MixesTokensError("is attention that was not recognised as attention over tokens")
    raise MixesTokensError("is an op whose effect on the token axis is not known")


def _first(node: fx.Node, axes: TokenAxes) -> tuple[torch.Tensor, int]:
    """The first argument and its token axis; no other argument may have one."""
    source: Any = node.args[0]
    axis = axes.get(source)
    others = [n for n in node.all_input_nodes if n is not source and axes[n] is not None]
    if axis is None or others:
        raise MixesTokensError("takes a value for each token where it should not")
    value: torch.Tensor = source.meta["val"]
    return value, axis


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _pointwise(node: fx.Node, axes: TokenAxes) -> int:
    found = set()
    for source in node.all_input_nodes:
        axis = axes[source]
        if axis is not None:
            found.add(axis - source.meta["val"].dim())
    if len(found) != 1:
        raise MixesTokensError("combines every token with every other one")
    aligned = found.pop()
    for source in node.all_input_nodes:
        value = source.meta["val"]
        if axes[source] is not None or not isinstance(value, torch.Tensor):
            continue
        if value.dim() >= -aligned and size_of(value.shape[aligned]) != 1:
            raise MixesTokensError(f"gives each token of the step its own part of '{source.name}'")
    return int(node.meta["val"].dim() + aligned)


def _permute(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    dims = [int(dim) % value.dim() for dim in _argument(node, 1, "dims")]
    return dims.index(axis)


def _transpose(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    dims: tuple[Any, ...] = node.args[1:3] if node.target is aten.transpose.int else (0, -1)
    one, two = (int(dim) % value.dim() for dim in dims)
    return {one: two, two: one}.get(axis, axis)


def _reshape(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    result = node.meta["val"].shape
    new = [i for i, size in enumerate(result) if size_of(size) == size_of(value.shape[axis])]
    for candidate in new:
        sizes = [size_of(s) for s in (*value.shape[:axis], *result[:candidate])]
        if all(isinstance(s, int) for s in sizes) and math.prod(sizes[:axis]) == math.prod(
            sizes[axis:]
        ):
            return candidate
    raise MixesTokensError("reshapes tokens into another axis")


def _unsqueeze(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    dim = int(_argument(node, 1, "dim")) % (value.dim() + 1)
    return axis + int(dim <= axis)


def _squeeze(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    dims = _dims(_argument(node, 1, "dim"), value.dim())
    return axis - sum(1 for dim in dims if dim < axis and size_of(value.shape[dim]) == 1)


def _expand(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    return int(axis + node.meta["val"].dim() - value.dim())


def _repeat(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    counts: Any = node.args[1]
    axis += len(counts) - value.dim()
    if counts[axis] != 1:
        raise MixesTokensError("repeats the tokens")
    return axis


def _slice(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    dim = int(_argument(node, 1, "dim", 0)) % value.dim()
    if dim == axis and size_of(node.meta["val"].shape[dim]) != size_of(value.shape[dim]):
        raise MixesTokensError("takes some of the tokens")
    return axis


def _select(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    dim = int(_argument(node, 1, "index")) % value.dim()
    if dim == axis:
        raise MixesTokensError("takes one of the tokens")
    return axis - int(dim < axis)


def along(position: int, default: Any = None) -> TokenRule:
    """Ops that work along one dim (argument `position`) and keep the rank."""

    def rule(node: fx.Node, axes: TokenAxes) -> int:
        value, axis = _first(node, axes)
        dim = _argument(node, position, "dim", default)
        if axis in _dims(dim, value.dim()):
            raise MixesTokensError("works along the token axis")
        return axis

    return rule


def reduction(position: int = 1, keepdim: int = 2) -> TokenRule:
    """Ops that reduce over dims (argument `position`)."""

    def rule(node: fx.Node, axes: TokenAxes) -> int:
        value, axis = _first(node, axes)
        dims = _dims(_argument(node, position, "dim"), value.dim())
        if axis in dims:
            raise MixesTokensError("reduces over the token axis")
        if _argument(node, keepdim, "keepdim", False):
            return axis
        return axis - sum(dim < axis for dim in dims)

    return rule


def _dims(dims: Any, rank: int) -> list[int]:
    """A dim or dims, counted from the front; none means all."""
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(rank))
    return [int(dim) % rank for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]


def _unbind(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    dim = int(_argument(node, 1, "dim", 0)) % value.dim()
    if dim == axis:
        raise MixesTokensError("takes the tokens apart")
    return axis - int(dim < axis)


def _cat(node: fx.Node, axes: TokenAxes) -> int:
    parts: Any = node.args[0]
    found = {axes[part] for part in parts}
    if len(found) != 1:
        raise MixesTokensError("joins values of some tokens with others")
    axis: Any = found.pop()
    rank = node.meta["val"].dim()
    dim = int(_argument(node, 1, "dim", 0)) % rank
    if node.target is aten.stack.default:
        return int(axis + int(dim <= axis))
    if dim == axis:
        raise MixesTokensError("joins values along the token axis")
    return int(axis)


def _pad(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    pads: Any = node.args[1]
    behind = value.dim() - 1 - axis
    if any(pads[2 * behind : 2 * behind + 2]):
        raise MixesTokensError("pads or shifts the tokens")
    return axis


def _linear(node: fx.Node, axes: TokenAxes) -> int:
    source: Any = node.args[0]
    axis = axes[source]
    for other in node.all_input_nodes:
        if other is not source and axes[other] is not None:
            same = axes[other] == axis and other.meta["val"].dim() == source.meta["val"].dim()
            if not (is_gw_op(node.target) and same and other is not node.args[1]):
                raise MixesTokensError("takes a value for each token where it should not")
    if axis is None or axis == source.meta["val"].dim() - 1:
        raise MixesTokensError("contracts the token axis")
    return axis


def _matmul(node: fx.Node, axes: TokenAxes) -> int:
    left, right = _argument(node, 0, "self"), _argument(node, 1, "mat2")
    ranks = [n.meta["val"].dim() for n in (left, right)]
    if min(ranks) < 2:
        raise MixesTokensError("is a product with a vector")
    rank = node.meta["val"].dim()
    one, two = (_from_the_right(axes[n], r) for n, r in zip((left, right), ranks, strict=True))
    if one == -1 or two == -2:
        raise MixesTokensError("contracts the token axis")
    if one is not None and two is not None and (one != two or one > -3):
        raise MixesTokensError("multiplies every token with every other one")
    aligned: Any = two if one is None else one
    return int(rank + aligned)


def _from_the_right(axis: int | None, rank: int) -> int | None:
    return None if axis is None else axis - rank


def _addmm(node: fx.Node, axes: TokenAxes) -> int:
    bias, left, right = (_argument(node, i, "") for i in range(3))
    if axes[left] != 0 or axes[right] is not None or axes[bias] is not None:
        raise MixesTokensError("takes a value for each token where it should not")
    return 0


def _layer_norm(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    shape: Any = node.args[1]
    if axis >= value.dim() - len(shape):
        raise MixesTokensError("normalizes over the token axis")
    return axis


def _group_norm(node: fx.Node, axes: TokenAxes) -> int:
    """Each entry of the first axis is normalized by itself, over all other axes."""
    _, axis = _first(node, axes)
    if axis != 0:
        raise MixesTokensError("normalizes over the token axis")
    return axis


def _triangle(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = _first(node, axes)
    if axis >= value.dim() - 2:
        raise MixesTokensError("hides entries by the place of their token in the step")
    return axis


def _embedding(node: fx.Node, axes: TokenAxes) -> int:
    table, ids = _argument(node, 0, "weight"), _argument(node, 1, "indices")
    axis = axes[ids]
    if axes[table] is not None or axis is None:
        raise MixesTokensError("looks up a table of tokens")
    return axis


def _index_select(node: fx.Node, axes: TokenAxes) -> int:
    source, dim, index = (_argument(node, i, "") for i in range(3))
    value = source.meta["val"]
    dim = int(dim) % int(value.dim())
    axis, by = axes[source], axes[index]
    if axis is None and by is not None:
        return dim
    if axis is None or by is not None or dim == axis:
        raise MixesTokensError("chooses among the tokens")
    return axis


def _index(node: fx.Node, axes: TokenAxes) -> int:
    source: Any = node.args[0]
    indices: Any = node.args[1]
    axis = axes[source]
    given = [(i, index) for i, index in enumerate(indices) if index is not None]
    if axis is None:
        if [i for i, _ in given] != list(range(len(given))):
            raise MixesTokensError("indexes a table in an unknown way")
        found = {_from_the_right(axes[n], n.meta["val"].dim()) for _, n in given} - {None}
        if len(found) != 1:
            raise MixesTokensError("combines every token with every other one")
        rank = max(n.meta["val"].dim() for _, n in given)
        aligned: Any = found.pop()
        return int(rank + aligned)
    if len(given) != 1 or axes[given[0][1]] is not None or given[0][0] == axis:
        raise MixesTokensError("chooses among the tokens")
    at, index = given[0]
    if index.meta["val"].dtype == torch.bool:
        raise MixesTokensError("indexes by a condition")
    return int(axis + (index.meta["val"].dim() - 1 if at < axis else 0))


def _gather(node: fx.Node, axes: TokenAxes) -> int:
    """Along dim: a table looked up by each token, or each token's own row."""
    source, dim, index = (_argument(node, i, "") for i in range(3))
    axis = axes[index]
    along = int(dim) % node.meta["val"].dim() == axis
    if axis is None or axes[source] != (None if along else axis):
        raise MixesTokensError("chooses among the tokens")
    return axis


def _row_wise(node: fx.Node, axes: TokenAxes) -> int:
    """gw ops whose tensors all have the token axis first or are weights."""
    if any(axes[n] not in (None, 0) for n in node.all_input_nodes):
        raise MixesTokensError("expects one row a token")
    return 0


def _routed(node: fx.Node, axes: TokenAxes) -> int:
    """Products of each slot's row with its expert's matrix: rows and experts of the same token."""
    if any(axes[n] != (0 if n in node.args[:2] else None) for n in node.all_input_nodes):
        raise MixesTokensError("expects rows and experts of each token")
    return 0


def _last_axis(node: fx.Node, axes: TokenAxes) -> int:
    """gw ops over the last axis of inputs of the same shape."""
    axis = _pointwise(node, axes)
    if axis == _argument(node, 0, "x").meta["val"].dim() - 1:
        raise MixesTokensError("normalizes over the token axis")
    return axis


_RULES: dict[str, TokenRule] = {
    "permute.default": _permute, "transpose.int": _transpose, "t.default": _transpose,
    "reshape.default": _reshape, "view.default": _reshape, "_unsafe_view.default": _reshape,
    "flatten.using_ints": _reshape, "unsqueeze.default": _unsqueeze, "squeeze.dim": _squeeze,
    "squeeze.dims": _squeeze, "expand.default": _expand, "repeat.default": _repeat,
    "slice.Tensor": _slice, "select.int": _select, "cat.default": _cat, "stack.default": _cat,
    "split.Tensor": along(2, 0), "split_with_sizes.default": along(2, 0),
    "chunk.default": along(2, 0), "unbind.int": _unbind, "flip.default": along(1),
    "repeat_interleave.self_int": along(2), "constant_pad_nd.default": _pad,
    "clone.default": _pointwise, "alias.default": _pointwise, "detach.default": _pointwise,
    "contiguous.default": _pointwise, "type_as.default": _pointwise,
    "mean.dim": reduction(), "sum.dim_IntList": reduction(),
    "amax.default": reduction(), "amin.default": reduction(), "argmax.default": reduction(),
    "max.dim": reduction(), "var.correction": reduction(),
    "linalg_vector_norm.default": reduction(2, 3), "softmax.int": along(1),
    "_softmax.default": along(1), "log_softmax.int": along(1), "cumsum.default": along(1),
    "topk.default": along(2, -1), "sort.default": along(1, -1), "linear.default": _linear,
    "matmul.default": _matmul, "bmm.default": _matmul, "mm.default": _matmul,
    "addmm.default": _addmm, "layer_norm.default": _layer_norm, "rms_norm.default": _layer_norm,
    "embedding.default": _embedding, "index_select.default": _index_select,
    "index.Tensor": _index, "gather.default": _gather, "group_norm.default": _group_norm,
    "tril.default": _triangle, "triu.default": _triangle, "diff.default": along(2, -1),
}  # fmt: skip
_GW_RULES: dict[str, TokenRule] = {
    "rope": _row_wise, "cached_attention": _row_wise, "causal_conv": _row_wise, "linear": _linear,
    "cached_scan": _row_wise, "cached_choose_keys": _row_wise,
    "routed_linear": _routed, "quantized_routed_linear": _routed, "weighted_sum": _routed,
    "top_k": along(2, -1), "quantized_linear": _linear, "embedding": _embedding,
    "gated_act": _pointwise, "rms_norm": _last_axis, "layer_norm": _last_axis,
    "add_rms_norm": _last_axis, "add_layer_norm": _last_axis,
}  # fmt: skip
