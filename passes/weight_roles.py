"""Which part a weight plays in a decoder, as recipes distinguish them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import fx

from graphwright.ir.layout import VIEW_OPS
from graphwright.ir.program import Program
from graphwright.ir.weights import Weight

__all__ = ["Role", "refusal", "weight_argument", "weight_readers"]

gw = torch.ops.gw
Role = Literal["linear", "experts", "head", "embedding"]
_PLACE: dict[Role, int] = {"embedding": 0, "experts": 2}  # of the weight; 1 elsewhere


def _role_of(node: fx.Node, heads: set[fx.Node]) -> Role | None:
    """The role of the weight that `node` reads, None for other ops; `heads` make the logits."""
    if node.target is gw.embedding.default:
        return "embedding"
    if node.target is gw.linear.default:
        return "head" if node in heads else "linear"
    routed = node.target is gw.routed_linear.default and not node.kwargs.get("optional")
    return "experts" if routed else None  # adapters are kept as they are


def weight_argument(role: Role) -> int:
    """The place of the weight among the arguments of a node in `role`."""
    return _PLACE.get(role, 1)


def weight_readers(program: Program, heads: set[fx.Node]) -> list[tuple[fx.Node, Role, fx.Node]]:
    """(node, its role, the weight that it reads) for every weight that recipes are about."""
    found = []
    for node in program.graph.nodes:
        role = _role_of(node, heads)
        if role is not None:
            found.append((node, role, node.args[weight_argument(role)]))
    return found


def refusal(node: fx.Node, name: str, weight: Weight | None, role: Role) -> str | None:
    """Why the weight `name` that `node` reads in `role` keeps its numbers; None where it may be
    stored in fewer bits.
    """
    if weight is None or not weight.dtype.is_floating_point:
        return f"'{name}' is no floating-point weight"
    if role == "embedding" and not _reads_tokens(node.args[1]):
        return f"the table '{name}' is not read by token id"
    return None


def _reads_tokens(ids: object) -> bool:
    """Do the indices come from the tokens, unchanged but for their shape?"""
    while isinstance(ids, fx.Node) and ids.target in VIEW_OPS:
        ids = ids.args[0]
    return isinstance(ids, fx.Node) and ids.target == "tokens"
