"""Whether what compiling needs is installed, and one clear sentence when it is not."""

from __future__ import annotations

from importlib.util import find_spec

import click

__all__ = ["require_compiler", "require_serving", "what_is_missing"]

_SERVING = {"serve": ("starlette", "uvicorn", "jinja2"), "chat": ("jinja2",)}
_EVERY_TARGET = ("torch", "transformers", "safetensors", "networkx", "rich")


def require_compiler(target: str = "host") -> None:
    """Raises a ClickException when a package that compiling for `target` needs is missing."""
    sentences = what_is_missing(target)
    if sentences is not None:
        raise click.ClickException(sentences)


def require_serving(verb: str) -> None:
    """Raises a ClickException when a package that `serve` or `chat` needs is missing."""
    missing = [name for name in _SERVING[verb] if find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"'{verb}' needs {', '.join(missing)}, which this environment does not have. "
            "Install it: pip install 'graphwright[serve]'."
        )


def what_is_missing(target: str = "host") -> str | None:
    """Which packages that compiling for `target` needs are missing; None: they are there."""
    gpu = target.partition(":")[0] == "cuda"
    needed = (*_EVERY_TARGET, "triton" if gpu else "tvm")
    missing = [name for name in needed if find_spec(name) is None]
    if not missing:
        return None
    extra = "compile,triton" if gpu else "compile"
    return (
        f"compiling needs {', '.join(missing)}, which this environment does not have; "
        f"running an artifact does not. Install it: pip install 'graphwright[{extra}]'."
    )
