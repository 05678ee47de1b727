"""What ways of loading a model by transformers share: silence, and its faults as sentences."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphwright.ir.errors import FrontendError

__all__ = [
    "LOADING", "as_module", "check_decoder", "check_report", "loading", "reason_of", "silent",
]  # fmt: skip

LOADING: dict[str, Any] = {
    "ignore_mismatched_sizes": True,  # refused by check_report, with their sizes
    "output_loading_info": True,
}


def check_decoder(path: Path, name: str) -> None:
    """Raises FrontendError where the model type `name` of `path` is no decoder."""
    import transformers

    decoders = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if name not in decoders:
        raise FrontendError(f"model type '{name}' of '{path}' is no decoder language model.")


def check_report(path: Path, report: dict[str, Any], header: str) -> None:
    """Raises FrontendError when tensors are missing or do not fit. header: what asks for them."""
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, stored, expected = wrong[0]
        raise FrontendError(
            f"{len(wrong)} tensor(s) of '{path}' do not fit {header}: '{name}' is "
            f"{list(stored)} in the file, {list(expected)} in the model."
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise FrontendError(
            f"'{path}' lacks {len(missing)} tensor(s) that {header} asks for, "
            f"the first is '{missing[0]}'."
        )
    errors = report.get("error_msgs")
    if errors:
        raise FrontendError(f"transformers cannot load '{path}': {errors[0]}.")


def as_module(model: object) -> nn.Module:
    """`model`, which is known to be one."""
    assert isinstance(model, nn.Module)
    return model


@contextlib.contextmanager
def loading(path: Path) -> Iterator[None]:
    """What goes wrong while open is a FrontendError."""
    try:
        yield
    except Exception as error:
        raise FrontendError(f"transformers cannot load '{path}': {reason_of(error)}.") from error


def reason_of(error: Exception) -> str:
    """What an error of transformers says, as one line without a full stop.

    The first line alone where that is a sentence; those that end in a colon go on in the next. The
    text of a KeyError is nothing but the key.
    """
    if isinstance(error, KeyError):
        return f"it does not know {error}"
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    said = 1 + next((i for i, line in enumerate(lines) if not line.endswith(":")), 0)
    return " ".join(lines[:said]).rstrip(".")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No progress bars, reports or warnings of transformers while open."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
