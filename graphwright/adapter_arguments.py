"""The adapters that a compilation is asked for: where they lie, and whether the model takes any."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from graphwright.gguf_input import gguf_file
from graphwright.ir.errors import FrontendError
from graphwright.prepare import local_model

__all__ = ["adapters_of", "named_adapters"]


def adapters_of(asked: str | Path | Sequence[str | Path], model: object) -> list[Path]:
    """Where the adapters for `model` lie. Raises FrontendError for a model that takes none."""
    each = [asked] if isinstance(asked, (str, Path)) else list(asked)
    path = Path(model) if isinstance(model, (str, Path)) else None
    if each and (path is None or path.suffix == ".onnx" or gguf_file(path) is not None):
        raise FrontendError(
            "adapters belong to the weights of a checkpoint directory, not to an ONNX or GGUF file "
            "or a module."
        )
    return [local_model(adapter, code=False) for adapter in each]


def named_adapters(asked: Mapping[str, str | Path], model: object) -> dict[str, Path]:
    """The same of those that stay beside the weights, by the names that requests choose them by."""
    for name in asked:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]*", name):
            raise FrontendError(
                f"'{name}' is no name for an adapter: letters, digits and . _ : / - are taken."
            )
    return dict(zip(asked, adapters_of(list(asked.values()), model), strict=True))
