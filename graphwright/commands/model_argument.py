"""The argument MODEL: a path on this disk, FILE.py:FUNCTION, or a model of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from graphwright.commands.user_module import is_user_module
from graphwright.hub import HubError, HubModel

__all__ = ["ADAPTER", "default_output", "model_on_disk"]

ADAPTER = "a LoRA adapter's directory, or ORG/NAME of one on the Hub"


def model_on_disk(model: str, expected: str, *, code: bool, weights: bool = True) -> str:
    """MODEL as a path that exists, or FILE.py:FUNCTION; one of the Hub is downloaded first.

    expected: what MODEL may be, for the error. code, weights: as for `HubModel.on_disk`. Raises
    a ClickException, before anything large is imported.
    """
    if is_user_module(model):
        return model
    hub = HubModel.parse(model)
    if hub is None:
        if not Path(model).exists():
            raise click.ClickException(
                f"there is no file or directory '{model}': MODEL is {expected}."
            )
        return model
    try:
        return str(hub.on_disk(code=code, weights=weights))
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"there is no directory '{model}' here, and models of the Hugging Face Hub need "
            f"{error.name}: pip install 'graphwright[compile]'."
        ) from error
    except HubError as error:
        raise click.ClickException(str(error)) from None


def default_output(model: str, on_disk: str, quant: str | None) -> Path:
    """What the file is called by default: as MODEL, in the current directory. on_disk: where that
    lies, as `model_on_disk` says.
    """
    from graphwright.gguf_input import gguf_file, gguf_name

    hub, path = HubModel.parse(model), Path(on_disk).resolve()
    stored = None if is_user_module(model) else gguf_file(path)
    if stored is not None:  # its name says how it is stored
        name = gguf_name(stored)
        if quant is None:
            return Path(f"{name}.gw")
    elif hub is not None:
        name = hub.repository.split("/")[1]
    elif is_user_module(model):
        name = Path(model.split(":")[0]).stem
    else:
        # exporters write every model to a model.onnx
        path = path.parent if path.name == "model.onnx" else path
        name = path.name if path.is_dir() else path.stem  # a dot in a directory's: Qwen3-0.6B
    return Path(f"{name}-{(quant or 'f32').replace(':', '-')}.gw")
