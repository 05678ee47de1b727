"""Blocks that loop over experts, replaced while tracing, once proven equal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from graphwright.frontend.expert_candidates import ExpertBlock, find_candidates, replaced
from graphwright.frontend.expert_loops import CannotRouteError
from graphwright.frontend.expert_proofs import SEEN_TOKENS, prove
from graphwright.frontend.unchanged import unchanged
from graphwright.ir.errors import FrontendError

__all__ = ["routed_blocks"]

_LOG = logging.getLogger("graphwright.frontend")


@contextlib.contextmanager
def routed_blocks(model: nn.Module, run: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    """While open, each block of `model` that loops over experts runs its loop once, for all slots.

    run: calls the model on tokens [T]. Whether a block is such a loop, and computes the same when
    run so, is found out by running it with random weights and inputs that reach every expert.
    Raises FrontendError for a loop over experts that is of another kind.
    """
    blocks = find_candidates(model)
    if blocks:
        with unchanged(model):
            blocks = _loops(blocks, run)
        for block in {b.kind: b for b in reversed(blocks) if b.call is not None}.values():
            count = prove(block)
            _LOG.info("%s: its loop over %d experts is run once", block.name, count)
    with replaced(blocks, lambda block, forward, *args, **kw: block.run(forward, *args, **kw)[0]):
        yield


class _EnoughError(Exception):
    """A block of each kind has been seen."""


def _loops(blocks: list[ExpertBlock], run: Callable[[torch.Tensor], Any]) -> list[ExpertBlock]:
    """Those of `blocks` that loop over their experts, whose number is known then; one of each kind
    with what it is called with.

    A loop that is missed here cannot be traced: it is refused, and not compiled wrong.
    """
    kinds = {block.kind for block in blocks}
    counts: dict[Hashable, int | None] = {}  # None for what is no loop

    def watched(block: ExpertBlock, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if block.kind not in counts:
            block.call = (args, kwargs)
        try:
            result, loop = block.run(forward, *args, **kwargs)
        except CannotRouteError as reason:
            raise block.refusal(str(reason)) from reason
        counts[block.kind] = counts.get(block.kind) or (loop.ids is not None and loop.count) or None
        if counts.keys() == kinds:
            raise _EnoughError
        return result

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with replaced(blocks, watched), mode, torch.no_grad():
        try:
            run(torch.zeros(SEEN_TOKENS, dtype=torch.int64))
        except _EnoughError:
            _LOG.debug("a block of each kind was seen")
        except FrontendError:
            raise
        except Exception as error:  # noqa: BLE001  (whatever the model raises; tracing will say)
            _LOG.info("the run that looks for loops over experts failed: %s", error)
            return []
    return [
        replace(block, counts=frozenset([count]))
        for block in blocks
        if (count := counts.get(block.kind)) is not None
    ]
