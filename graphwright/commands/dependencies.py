"""Whether what compiling needs is installed, and one clear sentence when it is not."""

from __future__ import annotations

from importlib.util import find_spec

import click

__all__ = ["COMPILER_PACKAGES", "require_compiler"]

COMPILER_PACKAGES = ("torch", "transformers", "safetensors", "tvm", "networkx", "rich")


def require_compiler() -> None:
    """Raises a ClickException when a package that compiling needs is missing."""
    missing = [name for name in COMPILER_PACKAGES if find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"compiling needs {', '.join(missing)}, which this environment does not have; "
            "running an artifact does not. Install it: pip install 'graphwright[compile]'."
        )
