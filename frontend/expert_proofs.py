"""Is a loop over experts the same when it is run once? Both ways are run, and must agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from graphwright.frontend.expert_candidates import ExpertBlock, replaced
from graphwright.frontend.expert_loops import ExpertLoop
from graphwright.ir.errors import PassError
from graphwright.ir.tolerance import check_close

__all__ = ["SEEN_TOKENS", "prove"]

SEEN_TOKENS = 41
"""Tokens of the run that shows what each block is called with: no likely other size."""
_TRIED_TOKENS = (41, 164, 656)  # a proof needs every expert to be hit


def prove(block: ExpertBlock) -> int:
    """How many experts `block` has. Raises FrontendError unless it gives the same with its loop run
    once.

    Random weights and inputs; as many tokens as it takes to reach every expert.
    """
    for seed, tokens in enumerate(_TRIED_TOKENS):
        loop = _compare_runs(block, tokens, torch.Generator().manual_seed(seed))
        assert loop.ids is not None, "the block was seen to be a loop"
        if len(loop.ids.unique()) == loop.count:
            return loop.count
    raise block.refusal(f"{_TRIED_TOKENS[-1]} random tokens do not reach every expert")


def _compare_runs(block: ExpertBlock, tokens: int, generator: torch.Generator) -> ExpertLoop:
    """Runs the block as it is and with its loop run once; returns what the loop met."""
    state = {name: _weights(p, generator) for name, p in block.module.named_parameters()}
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: _inputs(t, tokens, block.count, generator), block.call
    )
    loops: list[ExpertLoop] = []

    def routed(block: ExpertBlock, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result, loop = block.run(forward, *args, **kwargs)
        loops.append(loop)
        return result

    with torch.no_grad():
        want = torch.func.functional_call(block.module, state, *_copied(args, kwargs))
        with replaced([block], routed):
            got = torch.func.functional_call(block.module, state, *_copied(args, kwargs))
    _compare(block, got, want)
    return loops[-1]


def _copied(args: Any, kwargs: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))


def _weights(parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    spread = parameter.shape[-1] ** -0.5 if parameter.dim() else 1.0
    return torch.randn(parameter.shape, generator=generator) * spread


def _inputs(
    like: torch.Tensor, tokens: int, count: int, generator: torch.Generator
) -> torch.Tensor:
    """Random values like an argument that was seen in a run over SEEN_TOKENS tokens; integers are
    taken to be experts, different ones along the last axis."""
    shape = [tokens if size == SEEN_TOKENS else size for size in like.shape]
    if like.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=like.dtype)
    scores = torch.rand([*shape[:-1], max(count, shape[-1])], generator=generator)
    return (scores.argsort(-1)[..., : shape[-1]] % count).to(like.dtype)


def _compare(block: ExpertBlock, got: Any, want: Any) -> None:
    for one, other in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        if isinstance(one, torch.Tensor):
            try:
                check_close(one, other)
            except PassError as error:
                reason = f"run once for all slots it gives other values, {error}"
                raise block.refusal(reason.rstrip(".")) from error
