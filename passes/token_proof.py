"""The proof that a program with its caches works on each token alone, or the reason why it fails.

Two parts that know nothing of each other: a rule for each op (token_axis.py), and an evaluation of
each op on some tokens and on others (token_confirmation.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.ir import PassError, Program
from graphwright.ir.source import source_line
from graphwright.passes.attention_core import NoCoreError, find_core, is_core_root
from graphwright.passes.content_free import content_free_nodes
from graphwright.passes.token_axis import TokenAxisError, find_token_axes
from graphwright.passes.token_confirmation import confirm_token_axes

__all__ = ["prove_per_token"]

aten = torch.ops.aten
_SOFTMAX = {aten.softmax.int, aten._softmax.default}


def prove_per_token(program: Program) -> list[str]:
    """Proves it, and returns which nodes no evaluation could confirm, as sentences.

    Raises PassError naming the op that mixes tokens; where it is part of attention that was not
    recognised, it says why that was not.
    """
    try:
        axes = find_token_axes(program)
    except TokenAxisError as error:
        assert error.node is not None
        reason = _attention_around(program, error.node)
        if reason is None:
            raise
        raise PassError(f"{reason}. Only attention over earlier tokens has a cache.") from None
    return confirm_token_axes(program, axes)


def _attention_around(program: Program, node: fx.Node) -> str | None:
    """Why the attention that `node` is, or whose scores or mask it computes, is none of ours."""
    if not _is_over_pairs(node) and not is_core_root(program, node):
        return None
    content_free = content_free_nodes(program)
    seen, stack = {node}, [node]
    while stack:
        here = stack.pop(0)
        if is_core_root(program, here):
            try:
                find_core(program, here, content_free)
                reason = f"'{here.name}' is attention that was not recognised"
            except NoCoreError as error:
                reason = str(error)
            return f"{reason}{source_line(here)}"
        if here.target in _SOFTMAX and _is_over_pairs(here):
            return (
                f"the softmax '{here.name}' is no attention: it normalizes over queries, not over "
                f"the keys of each{source_line(here)}"
            )
        new = [user for user in here.users if user not in seen]
        seen.update(new)
        stack += new
    return None


def _is_over_pairs(node: fx.Node) -> bool:
    """Does `node` have a value for each pair of tokens?"""
    value: Any = node.meta.get("val")
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    return sum(isinstance(size, torch.SymInt) for size in shape) > 1
