"""What attention that is written out is made of, or why something is none."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from graphwright.passes.mask_bias import MaskTerm

__all__ = ["AttentionCore", "NoCoreError", "no_attention"]


class NoCoreError(Exception):
    """Why something that looks like attention is none. The message is a miss reason."""


def no_attention(root: fx.Node, node: fx.Node, why: str) -> NoCoreError:
    """That the softmax `root` is none, as `node` `why`."""
    return NoCoreError(f"the softmax '{root.name}' is no attention: '{node.name}' {why}")


@dataclass
class AttentionCore:
    """`result` [..., T, Dv] = softmax(scores) · v with scores from q · k.

    q [..., T, D], v [..., T, Dv]; k is [..., T, D], or [..., D, T] when `k_transposed`. The axes in
    front are heads (and a batch of one). Heads of these sizes may lie before the queries, in one
    axis with them: `folded` in q, `folded_weights` in the left operand of the product with v.
    """

    q: fx.Node
    k: fx.Node
    v: fx.Node
    result: fx.Node
    scale: float
    k_transposed: bool = False
    grouped: bool = False  # enable_gqa: k and v may have fewer heads
    causal: bool = False
    softcap: float = 0.0
    sinks: fx.Node | None = None
    rescaled: fx.Node | None = None  # the result times what the sinks take off
    terms: list[MaskTerm] = field(default_factory=list)
    folded: list[int] = field(default_factory=list)
    folded_weights: list[int] = field(default_factory=list)
