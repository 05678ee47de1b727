"""Whether an engine can promise that no sequence's results depend on what runs beside it."""

from __future__ import annotations

from graphwright.runtime.errors import RequestError
from graphwright.runtime.library import StepLibrary
from graphwright.runtime.plan import Plan

__all__ = ["check_invariance"]


def check_invariance(
    plan: Plan, library: StepLibrary, prefix_cache: bool, speculate: str | None
) -> None:
    """Raises RequestError where batch_invariant cannot be kept, with the reason."""
    reason = _reason(plan, library, prefix_cache, speculate)
    if reason is not None:
        raise RequestError(f"batch_invariant cannot be kept {reason}.")


def _reason(
    plan: Plan, library: StepLibrary, prefix_cache: bool, speculate: str | None
) -> str | None:
    if library.overlaps:
        return (
            "on a GPU, whose kernels are chosen by the number of tokens of a step; compile for a "
            "CPU"
        )
    if prefix_cache:
        return (
            "with a prefix cache: what an answer computed is rounded otherwise than what a prompt "
            "computes of the same tokens; leave prefix_cache out (serve: --no-prefix-cache)"
        )
    if speculate is not None:
        return "with guessed tokens: a step of several rounds otherwise; leave speculate out"
    if plan.adapters:
        return (
            f"with adapters ({', '.join(plan.adapters)}), which stay floats: such a product is "
            "rounded by how many rows a step has; compile without --adapter"
        )
    if plan.float_products is None:
        return (
            "by this artifact, as an older graphwright compiled it and did not say which weights "
            "are integers; compile it again"
        )
    if plan.float_products:
        first, count = plan.float_products[0], len(plan.float_products)
        return (
            f"with weights that are multiplied as floats ({count}, the first is '{first}'): such "
            "a product is rounded by how many rows a step has; compile with a recipe such as w8 "
            "or w4g32"
        )
    return None
