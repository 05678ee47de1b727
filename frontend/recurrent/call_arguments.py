"""Arguments of a call by their names, and where their batch and their tokens are."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from graphwright.frontend.recurrent.decoding_run import BATCH, LENGTH
from graphwright.ir.errors import FrontendError

__all__ = ["by_name", "token_axes"]


def by_name(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by their names, those of `**kwargs` too."""
    bound = signature.bind(*args, **kwargs).arguments
    found: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            found[name] = value
    return found


def token_axes(prompt: Any, token: torch.Tensor | None) -> tuple[int, int] | None:
    """Where the batch and the tokens are, in a tensor of the prompt's run; None without tokens.

    token: the same argument for one token. Raises FrontendError for tokens without a batch.
    """
    if not isinstance(prompt, torch.Tensor):
        return None
    sizes = list(prompt.shape)
    alike = token is None or token.dim() == prompt.dim()
    tokens = [
        axis
        for axis, size in enumerate(sizes)
        if size == LENGTH and alike and (token is None or token.shape[axis] == 1)
    ]
    if not tokens:
        return None
    batch = [axis for axis, size in enumerate(sizes) if size == BATCH]
    batch = batch or [axis for axis in range(tokens[0]) if sizes[axis] == 1]
    if not batch:
        raise FrontendError(
            f"a module with states takes a value of shape {sizes}, for each token but not for each "
            f"of several sequences."
        )
    return batch[0], tokens[0]
