"""Lines of the model's own code, as messages name them."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch import nn

__all__ = ["Line", "is_of_the_model", "line_of", "model_line", "place_of"]

Line = tuple[CodeType, int, int]
"""Some code, a line number and the id of the module that it ran in: modules share code."""

_OURS = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


def is_of_the_model(file: str) -> bool:
    """Is `file` neither ours nor torch's?"""
    return not file.startswith((_TORCH, _OURS, "<"))


def place_of(stack: Iterable[traceback.FrameSummary]) -> str:
    """The innermost frame that is the model's, as ` at FILE:LINE: CODE`; empty without one."""
    for frame in reversed(list(stack)):
        if is_of_the_model(frame.filename):
            return f" at {frame.filename}:{frame.lineno}: {(frame.line or '').strip()}"
    return ""


def line_of(code: CodeType, number: int) -> str:
    """That line of `code`, in the same words."""
    text = linecache.getline(code.co_filename, number).strip()
    return f" at {code.co_filename}:{number}: {text}"


def model_line() -> Line | None:
    """The innermost line of the model's code that is running; None outside of it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_of_the_model(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return None
    code, number = frame.f_code, frame.f_lineno
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return code, number, id(module)
        frame = frame.f_back
    return code, number, 0
