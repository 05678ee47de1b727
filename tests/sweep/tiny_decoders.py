"""Tiny models with decisive random weights, run by transformers, and whether they are decoders."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from fix_ups import NOT_TEXT_DECODERS
from tiny_configs import tiny_config
from torch import nn
from transformers import AutoModelForCausalLM

from graphwright.ir.errors import PassError
from graphwright.ir.tolerance import check_close

__all__ = ["NotADecoderError", "check_is_decoder", "eager_logits", "random_prompt", "tiny_decoder"]

# Ids below and above these are special somewhere: padding, ends, placeholders of images.
FIRST_PLAIN, FIRST_SPECIAL = 5, 112
# Parameters with a meaning that noise would destroy: decay rates and step sizes of recurrences.
_LEFT = ("A_log", "dt_", ".D", "time_", "decay", "slope")


class NotADecoderError(Exception):
    """The entry is not a causal decoder of text; the message says why."""


def tiny_decoder(model_type: str) -> nn.Module:
    """The tiny model of `model_type`, eval, float32, its weights from seed 0.

    Raises NotADecoderError when there is no model that runs on text alone.
    """
    if model_type in NOT_TEXT_DECODERS:
        raise NotADecoderError(NOT_TEXT_DECODERS[model_type])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type), dtype=torch.float32)
    assert isinstance(model, nn.Module)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _redraw(name, parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("bias") and buffer.is_floating_point() and buffer.dim() == 1:
                _redraw(name, buffer)
    return model.eval()


def _redraw(name: str, tensor: torch.Tensor) -> None:
    """Larger weights than a fresh model's, so that logits differ clearly from token to token.

    Scales (all ones) and offsets (all zeros) get noise around what they were.
    """
    if any(part in name for part in _LEFT) or tensor.numel() == 0:
        return
    first = float(tensor.flatten()[0])
    constant = bool((tensor == first).all())
    noise = torch.randn_like(tensor)
    if constant and first == 1.0:
        tensor.copy_(1.0 + 0.3 * noise)
    elif tensor.dim() >= 2:
        tensor.copy_(noise * 1.5 / tensor.shape[-1] ** 0.5)
    elif constant and first == 0.0:
        tensor.copy_(0.15 * noise)


def random_prompt(length: int) -> list[int]:
    """`length` plain token ids, the same every time."""
    generator = torch.Generator().manual_seed(length)
    ids: list[int] = torch.randint(
        FIRST_PLAIN, FIRST_SPECIAL, (length,), generator=generator
    ).tolist()
    return ids


def eager_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """Logits [T, V] of one sequence by one full forward without a cache."""
    switches = {"use_cache": False, "return_dict": True}
    accepted = inspect.signature(model.forward).parameters
    keywords = {name: value for name, value in switches.items() if name in accepted}
    with torch.no_grad():
        result = model(torch.tensor([tokens]), **keywords)
    logits = getattr(result, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3:
        raise NotADecoderError(f"its forward returns {type(result).__name__} without logits.")
    if logits.shape[:2] != (1, len(tokens)):
        raise NotADecoderError(
            f"its logits for {len(tokens)} tokens have the shape {tuple(logits.shape)}"
        )
    return logits[0]


def check_is_decoder(model: nn.Module) -> None:
    """Raises NotADecoderError unless logits depend on earlier tokens and only on them.

    A model that ignores its context or the order of tokens would be a bad subject: ValueError.
    """
    tokens = random_prompt(21)
    try:
        logits = eager_logits(model, tokens)
    except NotADecoderError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise NotADecoderError(f"it does not run on token ids alone: {reason}") from error
    for count in (20, 13, 1):
        try:
            check_close(eager_logits(model, tokens[:count]), logits[:count])
        except PassError as error:
            raise NotADecoderError(
                f"it is not causal: the logits of the first {count} of 21 tokens change when the "
                f"others follow ({error})"
            ) from error
    if not bool(logits.isfinite().all()):
        raise ValueError("the logits of the tiny model are not finite.")
    for what, others in (
        ("an earlier token", [*tokens[:17], (tokens[17] + 1), *tokens[18:]]),
        ("the order of earlier tokens", [*tokens[:17], tokens[18], tokens[17], *tokens[19:]]),
    ):
        change = float((eager_logits(model, others)[-1] - logits[-1]).abs().max())
        if not change > 1e-3:
            raise ValueError(f"{what} changes the last logits of the tiny model by {change:.1e}.")
    if not float(logits.std(0).mean()) > 0.1 * float(logits.std()):
        raise ValueError("the tiny model says nearly the same to every token.")
