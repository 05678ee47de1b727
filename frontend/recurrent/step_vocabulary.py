"""Which nodes may stand inside of a step, and what one of their values takes for each token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.levels import INDEXING, POINTWISE, REDUCTION, SHAPE

__all__ = ["StepNodes", "at_one_token"]

aten = torch.ops.aten
_INSIDE = (POINTWISE | SHAPE | REDUCTION | INDEXING) - frozenset(
    "embedding.default cumsum.default diff.default arange.default arange.start arange.start_step "
    "index.Tensor index_select.default gather.default tril.default triu.default".split()
)
_SPELLINGS = frozenset(
    """
    _unsafe_view.default alias.default broadcast_to.default contiguous.default copy.default
    detach.default expand_as.default lift_fresh_copy.default mT.default masked_fill.Scalar
    max.other mean.default min.other movedim.int movedim.intlist narrow.default numpy_T.default
    rsub.Tensor select_scatter.default slice_scatter.default softmax.int squeeze.default
    sum.default swapaxes.default to.dtype to.dtype_layout to.other type_as.default unflatten.int
    var.dim view.default where.self zeros_like.default
    """.split()
)
_PRODUCTS = frozenset(
    "matmul.default bmm.default mm.default mv.default einsum.default baddbmm.default "
    "conv1d.default convolution.default linear.default addmm.default dot.default".split()
)


class StepNodes:
    """The nodes of a graph whose token axis has the symbol `tokens`."""

    def __init__(self, tokens: Any) -> None:
        self._tokens = tokens

    def inside(self, node: fx.Node) -> bool:
        """May `node` be in a step when it does not need the state? Products of matrices stay
        outside: there they are computed for all tokens at once."""
        return self._is_known(node, _INSIDE | _SPELLINGS)

    def inside_with_state(self, node: fx.Node) -> bool:
        """May it when it needs the state?"""
        return self._is_known(node, _INSIDE | _SPELLINGS | _PRODUCTS)

    def is_static(self, node: fx.Node) -> bool:
        """Is its value the same for any number of tokens?"""
        value = node.meta.get("val")
        sizes = value.shape if isinstance(value, torch.Tensor) else ()
        return isinstance(value, torch.Tensor) and all(isinstance(size_of(s), int) for s in sizes)

    def row_size(self, node: fx.Node) -> float:
        """Elements of the value for one token, when its tokens are its first axis; else ∞."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return math.inf
        if size_of(value.shape[0]) != self._tokens:
            return math.inf
        sizes = [size_of(size) for size in value.shape[1:]]
        return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else math.inf

    def _is_known(self, node: fx.Node, names: frozenset[str]) -> bool:
        if node.op != "call_function":
            return False
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)):
            return True  # a size
        if getattr(node.target, "__name__", "") == "getitem":
            source: Any = node.args[0]
            return self._is_known(source, names)
        name = str(node.target)
        if not name.startswith("aten.") or name.removeprefix("aten.") not in names:
            return False
        leaves = value if isinstance(value, (list, tuple)) else [value]
        return all(self._tokens_first(leaf) for leaf in leaves)

    def _tokens_first(self, value: Any) -> bool:
        """Do only the first axis' elements belong to several tokens, if any?"""
        if not isinstance(value, torch.Tensor):
            return False
        sizes = [size_of(size) for size in value.shape]
        return all(isinstance(size, int) for size in sizes[1:])


def at_one_token(size: Any, tokens: Any) -> int:
    """A size, or an expression of sizes, where there is one token."""
    expression = size_of(size) if isinstance(size, torch.SymInt) else size
    return int(expression.subs(tokens, 1)) if hasattr(expression, "subs") else int(expression)
