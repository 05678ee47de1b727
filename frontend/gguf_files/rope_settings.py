"""Rotary embedding as the header of a GGUF file says it: base, width, and how it is scaled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphwright.frontend.gguf_files.reading import GgufFile
from graphwright.ir.errors import FrontendError

__all__ = ["FREQUENCY_FACTORS", "divide_frequencies", "settle_rope"]

FREQUENCY_FACTORS = "rope_freqs.weight"
"""A tensor of what each frequency is divided by, [channels of a head / 2]."""
_YARN = {
    "scaling.factor": "factor",
    "scaling.original_context_length": "original_max_position_embeddings",
    "scaling.yarn_beta_fast": "beta_fast",
    "scaling.yarn_beta_slow": "beta_slow",
    "scaling.attn_factor": "attention_factor",
    "scaling.yarn_attn_factor": "attention_factor",
}
_LINEAR = {"scaling.factor": "factor"}
_TYPES = {"linear": _LINEAR, "yarn": _YARN}
_FULL = "full_attention"


def settle_rope(file: GgufFile, config: Any, rope: dict[str, Any]) -> None:
    """Makes `config` say what the keys rope.… of the header say. Where layers that see everything
    and those with a window have parameters of their own, scaling is for the first.

    Raises FrontendError for a scaling that is not known.
    """
    left = dict(rope)
    parameters = getattr(config, "rope_parameters", None)
    width = left.pop("dimension_count", None)
    if not isinstance(parameters, dict):
        _refuse(file, config, {key: n for key, n in left.items() if key != "freq_base"})
        return
    nested = isinstance(parameters.get(_FULL), dict)
    full = parameters[_FULL] if nested else parameters
    base = left.pop("freq_base", None)
    if base is not None and full.get("rope_theta") != base:
        full["rope_theta"] = base
    local = left.pop("freq_base_swa", None)
    if local is not None and nested:
        parameters["sliding_attention"]["rope_theta"] = local
    _settle_width(file, config, full, width)
    _settle_scaling(file, config, full, left)
    config.rope_parameters = parameters


def _settle_width(file: GgufFile, config: Any, full: dict[str, Any], width: int | None) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = full.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    if width is None or width == int(head * (1.0 if share is None else share)):
        return
    if share is None or full.get("rope_type") == "proportional":
        if width == getattr(config, "global_head_dim", None):
            return
        _refuse(file, config, {"dimension_count": width})
    full["partial_rotary_factor"] = width / head
    if hasattr(config, "partial_rotary_factor"):
        config.partial_rotary_factor = width / head


def _settle_scaling(
    file: GgufFile, config: Any, full: dict[str, Any], left: dict[str, Any]
) -> None:
    kind = left.pop("scaling.type", "none")
    if kind == "none" or (kind == "linear" and left.get("scaling.factor") in (0, 1)):
        for key in list(left):
            if key.startswith("scaling."):
                del left[key]
    elif kind in _TYPES:
        names = {key: name for key, name in _TYPES[kind].items() if key in left}
        full["rope_type"] = kind
        full.update({name: left.pop(key) for key, name in names.items()})
        if kind == "linear":  # what else is said of a scaling is for others
            left.pop("scaling.original_context_length", None)
    else:
        left["scaling.type"] = kind
    _refuse(file, config, left)


def _refuse(file: GgufFile, config: Any, left: dict[str, Any]) -> None:
    """Raises FrontendError where anything is left."""
    for key, value in left.items():
        raise FrontendError(
            f"'{file.path}' says {file.architecture}.rope.{key} = {value}, which "
            f"{type(config).__name__} cannot be made to say, so the model would compute something "
            "else. Give the original checkpoint."
        )


def divide_frequencies(file: GgufFile, model: nn.Module, factors: torch.Tensor) -> None:
    """Divides the frequencies of rotary embeddings in `model` by `factors`.

    Raises FrontendError where it has none of that number.
    """
    found = [
        buffer
        for name, buffer in model.named_buffers()
        if name.endswith("inv_freq") and buffer.shape == factors.shape
    ]
    if not found:
        raise FrontendError(
            f"'{file.path}' scales {len(factors)} frequencies of its rotary embedding "
            f"({FREQUENCY_FACTORS}), and the model has none of that number."
        )
    for buffer in found:
        buffer.div_(factors.to(buffer.dtype))
