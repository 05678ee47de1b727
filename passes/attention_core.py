"""Finding attention cores: an sdpa call, or matmul → … → softmax → matmul written out.

A core is described by its operands as chains of layout ops and by everything that happens to the
scores on the way. Nothing is rewritten here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from graphwright.ir import Program
from graphwright.ir.layout import size_of
from graphwright.passes.attention_operands import AttentionCore, NoCoreError
from graphwright.passes.mask_bias import MaskTerm
from graphwright.passes.softmax_walk import SoftmaxWalk

__all__ = ["AttentionCore", "NoCoreError", "find_core", "is_core_root"]

aten = torch.ops.aten
_SOFTMAX = {aten.softmax.int, aten._softmax.default}


def is_core_root(program: Program, node: fx.Node) -> bool:
    """An sdpa call, or a softmax over the last axis where that counts tokens."""
    if node.op != "call_function":
        return False
    if node.target is aten.scaled_dot_product_attention.default:
        return True
    if node.target not in _SOFTMAX:
        return False
    value = node.meta["val"]
    dim: Any = node.args[1]
    last = value.shape[-1]
    return dim % value.dim() == value.dim() - 1 and isinstance(last, torch.SymInt)


def find_core(program: Program, root: fx.Node, content_free: set[fx.Node]) -> AttentionCore:
    """The core around `root`. Raises NoCoreError with the reason when it is none of ours."""
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    if root.target is aten.scaled_dot_product_attention.default:
        core = _from_sdpa(root)
    else:
        core = SoftmaxWalk(program, root, content_free).core()
    k_axis = -1 if core.k_transposed else -2
    queries = tokens * math.prod(core.folded)
    for name, node, axis, wanted in (
        ("q", core.q, -2, queries), ("k", core.k, k_axis, tokens), ("v", core.v, -2, tokens),
    ):  # fmt: skip
        size = node.meta["val"].shape[axis]
        if size_of(size) != wanted:
            raise NoCoreError(
                f"'{root.name}' does not attend over tokens: the attended axis of {name} "
                f"('{node.name}') has size {size}"
            )
    return core


def _from_sdpa(root: fx.Node) -> AttentionCore:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given: dict[str, Any] = {**dict(zip(names, root.args, strict=False)), **root.kwargs}
    if given.get("dropout_p"):
        raise NoCoreError(f"'{root.name}' drops out {given['dropout_p']} of its weights")
    q, mask, scale = given["query"], given.get("attn_mask"), given.get("scale")
    core = AttentionCore(
        q=q,
        k=given["key"],
        v=given["value"],
        result=root,
        scale=float(q.meta["val"].shape[-1]) ** -0.5 if scale is None else float(scale),
        grouped=bool(given.get("enable_gqa")),
        causal=bool(given.get("is_causal")),
    )
    if mask is not None and core.causal:
        raise NoCoreError(f"'{root.name}' has a mask and is causal as well")
    if mask is not None:
        kind = "keep" if mask.meta["val"].dtype == torch.bool else "add"
        core.terms.append(MaskTerm(kind, mask))
    return core
