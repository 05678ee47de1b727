"""How each op carries the token axis from its inputs to its output, or why it does not."""

from __future__ import annotations

from typing import Any

from torch import fx

from graphwright.ir.levels import POINTWISE
from graphwright.ir.op import is_gw_op
from graphwright.passes.token_lookups import gathered, index_selected, indexed, looked_up
from graphwright.passes.token_moves import (
    expanded,
    joined,
    padded,
    permuted,
    repeated,
    reshaped,
    selected,
    sliced,
    squeezed,
    transposed,
    unbound,
    unsqueezed,
)
from graphwright.passes.token_rule import (
    MixesTokensError,
    TokenAxes,
    TokenRule,
    along,
    argument,
    first_argument,
    from_the_right,
    pointwise,
    reduction,
)

__all__ = ["token_rule"]


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
            return pointwise
    if name in ("attention", "scaled_dot_product_attention.default"):
        raise MixesTokensError("is attention that was not recognised as attention over tokens")
    raise MixesTokensError("is an op whose effect on the token axis is not known")


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
    left, right = argument(node, 0, "self"), argument(node, 1, "mat2")
    ranks = [n.meta["val"].dim() for n in (left, right)]
    if min(ranks) < 2:
        raise MixesTokensError("is a product with a vector")
    rank = node.meta["val"].dim()
    one, two = (from_the_right(axes[n], r) for n, r in zip((left, right), ranks, strict=True))
    if one == -1 or two == -2:
        raise MixesTokensError("contracts the token axis")
    if one is not None and two is not None and (one != two or one > -3):
        raise MixesTokensError("multiplies every token with every other one")
    aligned: Any = two if one is None else one
    return int(rank + aligned)


def _addmm(node: fx.Node, axes: TokenAxes) -> int:
    bias, left, right = (argument(node, i, "") for i in range(3))
    if axes[left] != 0 or axes[right] is not None or axes[bias] is not None:
        raise MixesTokensError("takes a value for each token where it should not")
    return 0


def _layer_norm(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = first_argument(node, axes)
    shape: Any = node.args[1]
    if axis >= value.dim() - len(shape):
        raise MixesTokensError("normalizes over the token axis")
    return axis


def _group_norm(node: fx.Node, axes: TokenAxes) -> int:
    """Each entry of the first axis is normalized by itself, over all other axes."""
    _, axis = first_argument(node, axes)
    if axis != 0:
        raise MixesTokensError("normalizes over the token axis")
    return axis


def _triangle(node: fx.Node, axes: TokenAxes) -> int:
    value, axis = first_argument(node, axes)
    if axis >= value.dim() - 2:
        raise MixesTokensError("hides entries by the place of their token in the step")
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
    axis = pointwise(node, axes)
    if axis == argument(node, 0, "x").meta["val"].dim() - 1:
        raise MixesTokensError("normalizes over the token axis")
    return axis


_RULES: dict[str, TokenRule] = {
    "permute.default": permuted, "transpose.int": transposed, "t.default": transposed,
    "reshape.default": reshaped, "view.default": reshaped, "_unsafe_view.default": reshaped,
    "flatten.using_ints": reshaped, "unsqueeze.default": unsqueezed, "squeeze.dim": squeezed,
    "squeeze.dims": squeezed, "expand.default": expanded, "repeat.default": repeated,
    "slice.Tensor": sliced, "select.int": selected, "cat.default": joined, "stack.default": joined,
    "split.Tensor": along(2, 0), "split_with_sizes.default": along(2, 0),
    "chunk.default": along(2, 0), "unbind.int": unbound, "flip.default": along(1),
    "repeat_interleave.self_int": along(2), "constant_pad_nd.default": padded,
    "clone.default": pointwise, "alias.default": pointwise, "detach.default": pointwise,
    "contiguous.default": pointwise, "type_as.default": pointwise,
    "mean.dim": reduction(), "sum.dim_IntList": reduction(),
    "amax.default": reduction(), "amin.default": reduction(), "argmax.default": reduction(),
    "max.dim": reduction(), "var.correction": reduction(),
    "linalg_vector_norm.default": reduction(2, 3), "softmax.int": along(1),
    "_softmax.default": along(1), "log_softmax.int": along(1), "cumsum.default": along(1),
    "topk.default": along(2, -1), "sort.default": along(1, -1), "linear.default": _linear,
    "matmul.default": _matmul, "bmm.default": _matmul, "mm.default": _matmul,
    "addmm.default": _addmm, "layer_norm.default": _layer_norm, "rms_norm.default": _layer_norm,
    "embedding.default": looked_up, "index_select.default": index_selected,
    "index.Tensor": indexed, "gather.default": gathered, "group_norm.default": _group_norm,
    "tril.default": _triangle, "triu.default": _triangle, "diff.default": along(2, -1),
}  # fmt: skip
_GW_RULES: dict[str, TokenRule] = {
    "rope": _row_wise, "cached_attention": _row_wise, "causal_conv": _row_wise, "linear": _linear,
    "cached_scan": _row_wise, "cached_choose_keys": _row_wise,
    "routed_linear": _routed, "quantized_routed_linear": _routed, "weighted_sum": _routed,
    "top_k": along(2, -1), "quantized_linear": _linear, "embedding": looked_up,
    "gated_act": pointwise, "rms_norm": _last_axis, "layer_norm": _last_axis,
    "add_rms_norm": _last_axis, "add_layer_norm": _last_axis,
}  # fmt: skip
