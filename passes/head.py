"""Which matrix products make the logits."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.ir.program import Program

__all__ = ["logits_linears"]

_LINEARS = frozenset(
    {
        torch.ops.aten.linear.default,
        torch.ops.gw.linear.default,
        torch.ops.gw.quantized_linear.default,
    }
)


def logits_linears(program: Program) -> set[fx.Node]:
    """The linears whose results reach the logits without passing through another linear.

    None in a part of a model, which has no vocabulary.
    """
    if not program.info.vocab_size:
        return set()
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    pending = [program.output]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.target in _LINEARS:
            found.add(node)
        else:
            pending.extend(node.all_input_nodes)
    return found
