"""Attention written out, below its softmax: down to the product of the weights with v."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.ir import Program
from graphwright.passes.attention_operands import AttentionCore, NoCoreError, no_attention
from graphwright.passes.layout_chains import is_layout_op, trace
from graphwright.passes.score_shapes import (
    CASTS,
    PRODUCTS,
    drops_last_column,
    heads_among_queries,
    is_nan,
    number_of,
)

__all__ = ["find_values"]

aten = torch.ops.aten
_CHOICES = {aten.where.self, aten.where.ScalarSelf}


def find_values(program: Program, root: fx.Node, core: AttentionCore) -> None:
    """Notes v, the result and the folded weights in `core`, whose sinks are known.

    Raises NoCoreError when other things than rearrangements stand between the softmax and v.
    """
    node, cut = root, core.sinks is None or core.rescaled is not None
    start = node  # what is moved since then must leave queries and keys as they were
    while True:
        user = _user_of(program, root, node)
        if user.target in PRODUCTS and user.args[0] is node and user.args[1] is not node:
            break
        if not is_layout_op(user):
            _note_moved(root, core, start, node)
            start = user
            if not cut and drops_last_column(user):
                cut = True
            elif user.target not in CASTS | _CHOICES:
                raise _between(root, user)
        node = user
    _note_moved(root, core, start, node)
    if not cut:
        raise no_attention(root, node, "keeps the column of the sinks")
    core.v, core.result = user.args[1], user  # type: ignore[assignment]


def _note_moved(root: fx.Node, core: AttentionCore, start: fx.Node, node: fx.Node) -> None:
    """Notes the heads that `node`, which rearranges `start`, has put before the queries."""
    chain = trace(node, repeats=False, end=start)
    if chain.base is not start:
        target = chain.base.target
        raise no_attention(root, chain.base, f"({target}) repeats what the softmax gives")
    heads = heads_among_queries(chain.axes, chain.base_axes)
    if heads is None:
        raise no_attention(
            root, node, f"({node.target}) moves heads, queries or keys among the scores"
        )
    core.folded_weights = heads + core.folded_weights


def _user_of(program: Program, root: fx.Node, node: fx.Node) -> fx.Node:
    """The one user; where(isnan(x), 0, x) of a softmax x is one, if that is all it is used for:
    rows that see nothing, of which there are none under any mask that is recognised.
    """
    users = list(node.users)
    for user in users:
        if user.target in _CHOICES and user.args[2] is node and len(users) == 2:
            test, zero = user.args[:2]
            if is_nan(test, node) and number_of(program, zero) == 0:
                return user
    if len(users) != 1:
        raise no_attention(root, node, f"has {len(users)} uses after the softmax, not one")
    if users[0].target in _CHOICES:
        raise _between(root, users[0])
    return users[0]


def _between(root: fx.Node, node: fx.Node) -> NoCoreError:
    return no_attention(root, node, f"({node.target}) stands between the softmax and the values")
