"""graphwright: from a PyTorch decoder to one file that decodes natively, without torch.

Everything is imported when it is first used: `import graphwright` itself loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from graphwright.compiler import Compiled, compile
    from graphwright.runtime.engine import Engine
    from graphwright.runtime.errors import ArtifactError, RequestError
    from graphwright.runtime.grammar import Grammar
    from graphwright.runtime.log_probabilities import TokenLogprobs
    from graphwright.runtime.request import Output, Piece
    from graphwright.runtime.sampling_params import SamplingParams

__all__ = [
    "ArtifactError",
    "Compiled",
    "Engine",
    "Grammar",
    "Output",
    "Piece",
    "RequestError",
    "SamplingParams",
    "TokenLogprobs",
    "compile",
    "load",
]

__version__ = "0.1.0"

_MODULES = {
    "ArtifactError": "graphwright.runtime.errors",
    "Compiled": "graphwright.compiler",
    "Engine": "graphwright.runtime.engine",
    "Grammar": "graphwright.runtime.grammar",
    "Output": "graphwright.runtime.request",
    "Piece": "graphwright.runtime.request",
    "RequestError": "graphwright.runtime.errors",
    "SamplingParams": "graphwright.runtime.sampling_params",
    "TokenLogprobs": "graphwright.runtime.log_probabilities",
    "compile": "graphwright.compiler",
}


def load(path: str | Path, **options: Any) -> Engine:
    """An engine over the artifact at `path`; `options` are Engine's. Raises ArtifactError."""
    from graphwright.runtime.engine import Engine

    return Engine(path, **options)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'graphwright' has no attribute '{name}'")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value
