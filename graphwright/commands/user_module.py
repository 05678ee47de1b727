"""`FILE.py:FUNCTION` on the command line: a user's own decoder, built by calling the function."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["build_user_module", "is_user_module"]

_FORM = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")


def is_user_module(text: str) -> bool:
    """Does `text` have the form FILE.py:FUNCTION?"""
    return _FORM.fullmatch(text) is not None


def build_user_module(text: str) -> torch.nn.Module:
    """Imports FILE.py and returns what FUNCTION() builds. Raises FrontendError with the reason."""
    from torch.nn import Module

    from graphwright.ir.errors import FrontendError

    match = _FORM.fullmatch(text)
    assert match is not None
    file, function = Path(match["file"]), match["function"]
    if not file.is_file():
        raise FrontendError(f"{file} is not a file.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        raise FrontendError(f"{file} has no function '{function}'.")
    model = build()
    if not isinstance(model, Module):
        raise FrontendError(
            f"{function}() of {file} returned a {type(model).__name__}, not an nn.Module."
        )
    return model
