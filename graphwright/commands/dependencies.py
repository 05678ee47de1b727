"""Whether what compiling needs is installed, and one clear sentence when it is not."""

from __future__ import annotations

from importlib.util import find_spec

import click

__all__ = ["require_compiler"]

_EVERY_TARGET = ("torch", "transformers", "safetensors", "networkx", "rich")


def require_compiler(target: str = "host") -> None:
    """Raises a ClickException when a package that compiling for `target` needs is missing."""
    gpu = target.partition(":")[0] == "cuda"
    needed = (*_EVERY_TARGET, "triton" if gpu else "tvm")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        extra = "compile,triton" if gpu else "compile"
        raise click.ClickException(
            f"compiling needs {', '.join(missing)}, which this environment does not have; "
            f"running an artifact does not. Install it: pip install 'graphwright[{extra}]'."
        )
