"""A model is traced as a whole where that holds for every length, else as it decodes.

A trace of the whole may hold for short sequences only: those of one block, where blocks of tokens
are computed one after the other.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

import torch

from graphwright.frontend.export_ladder import Exported
from graphwright.frontend.recurrent.recurrence import Recurrence, find_recurrence
from graphwright.frontend.repeated_layers import export_repeated
from graphwright.frontend.stateless import StatelessForward
from graphwright.ir.errors import FrontendError

__all__ = ["export_whole_or_stepped"]

_LOG = logging.getLogger("graphwright.frontend")


class _LoopError(FrontendError):
    """There is a loop over the tokens, in a model with modules that carry states."""


class _States:
    """How a model decodes, looked for when somebody asks."""

    def __init__(self, forward: StatelessForward) -> None:
        self._forward = forward
        self._found: Recurrence | FrontendError | None = None
        self._asked = False

    def recurrence(self) -> Recurrence | None:
        """None when it carries no states. Raises FrontendError when they are in no module that
        could be run by itself."""
        if not self._asked:
            self._asked = True
            try:
                self._found = find_recurrence(self._forward)
            except FrontendError as error:
                self._found = error
        if isinstance(self._found, FrontendError):
            raise self._found
        return self._found

    def end_loop(self) -> None:
        """Raises _LoopError where a loop over the tokens may be run step by step instead."""
        try:
            found = self.recurrence()
        except FrontendError as error:
            _LOG.info("a loop over the tokens cannot be run step by step: %s", error)
            return
        if found is not None:
            raise _LoopError("there is a loop over the tokens.")


def export_whole_or_stepped(
    forward: StatelessForward, tokens: torch.Tensor, context: int | None
) -> tuple[Exported, Recurrence | None]:
    """`forward` over `tokens` with a length that stays dynamic, and how its modules were run token
    by token, if they were. context: the longest sequence it takes. Raises FrontendError.
    """
    states = _States(forward)
    try:
        exported = _export_whole(forward, tokens, context, states)
        if exported.most is None or (context is not None and context <= exported.most):
            return exported, None
        with suppress(FrontendError):
            if (recurrence := states.recurrence()) is not None:
                return _export_stepped(forward, tokens, context, recurrence)
        return exported, None
    except FrontendError as error:
        try:
            recurrence = states.recurrence()
            if recurrence is None:
                raise
            _LOG.info("traced step by step: %s", error)
            return _export_stepped(forward, tokens, context, recurrence)
        except FrontendError as other:
            if other is error or isinstance(error, _LoopError):
                raise
            raise FrontendError(f"{error}\n  Step by step, as it decodes: {other}") from other


def _export_stepped(
    forward: StatelessForward, tokens: torch.Tensor, context: int | None, recurrence: Recurrence
) -> tuple[Exported, Recurrence]:
    with recurrence.stepped():
        exported = export_repeated(forward, tokens, context, places=recurrence.places())
        return replace(exported, rung=f"{exported.rung}, token by token"), recurrence


def _export_whole(
    forward: StatelessForward, tokens: torch.Tensor, context: int | None, states: _States
) -> Exported:
    """Without positions where the model can do without them and be traced; else with them."""
    try:
        return export_repeated(forward, tokens, context, loops=states.end_loop)
    except FrontendError as error:
        if isinstance(error, _LoopError) or not forward.give_positions():
            raise
        _LOG.info("with the model's own positions: %s", error)
        try:
            return export_repeated(forward, tokens, context, known=str(error))
        except FrontendError:
            forward.drop_positions()
            raise error from None
