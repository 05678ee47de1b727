"""GGUF files as models to compile: found, captured, with what lies in them beside the weights.

What needs torch or the package gguf is imported when it is used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphwright.ir.program import Program

__all__ = ["capture_gguf_file", "chosen_recipe", "gguf_file", "gguf_name"]


_SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_LATER_PART = re.compile(r".+-(?!00001-)\d{5}-of-\d{5}\.gguf")
_FIRST_PART = re.compile(r"-00001-of-\d{5}$")


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` is, or, of a directory without a config.json, the only one in it.

    None where it is something else. Raises FrontendError for a directory that has several.
    """
    if path.is_dir():
        return None if (path / "config.json").exists() else _only_file(path)
    if path.suffix == _SUFFIX:
        return path
    try:  # whatever it is called: some stores name files by their hashes
        with path.open("rb") as file:
            return path if file.read(len(_MAGIC)) == _MAGIC else None
    except OSError:
        return None


def gguf_name(path: Path) -> str:
    """What a compiled file is called after, by default: without the number of a part."""
    return _FIRST_PART.sub("", path.stem if path.suffix == _SUFFIX else path.name)


def chosen_recipe(model: object, quant: str | None, notes: list[str]) -> str:
    """`quant`, and where nothing is said f32, or of a GGUF file the recipe nearest to what it
    stores, which `notes` gets told. Raises FrontendError.
    """
    if quant is not None:
        return quant
    path = gguf_file(Path(model)) if isinstance(model, (str, Path)) else None
    if path is None:
        return "f32"
    _require_package()
    from graphwright.frontend.gguf_files.nearest_schemes import stored_recipe
    from graphwright.frontend.gguf_files.reading import read_gguf

    nearest = stored_recipe(read_gguf(path))
    notes.append(f"--quant {nearest.recipe}, the nearest to what the file stores: {nearest.stored}")
    return nearest.recipe


def capture_gguf_file(
    path: Path, context: int | None, notes: list[str], *, has_values: bool = True
) -> tuple[Program, dict[str, bytes]]:
    """The program, and the files that a checkpoint would have beside it.

    has_values: with its weights; else with their shapes alone, and without files. What there is to
    say of its tokenizer goes into `notes`. Raises FrontendError.
    """
    _require_package()
    from graphwright.frontend.gguf_files.decoder import capture_declared_gguf, capture_gguf
    from graphwright.frontend.gguf_files.reading import read_gguf
    from graphwright.frontend.gguf_files.vocabulary import vocabulary_files

    if not has_values:
        return capture_declared_gguf(path, max_context=context), {}
    program = capture_gguf(path, max_context=context)
    files, why_not = vocabulary_files(read_gguf(path))
    if why_not is not None:
        beside = path.with_name("tokenizer.json")
        if beside.is_file():
            files["tokenizer.json"] = beside.read_bytes()
            notes.append(f"{why_not}; the tokenizer is {beside}")
        else:
            notes.append(
                f"{why_not}: prompts are token ids, unless a tokenizer.json is put beside the file"
            )
    return program, files


def _require_package() -> None:
    """Raises FrontendError where the package gguf is not installed."""
    from graphwright.ir.errors import FrontendError

    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise FrontendError(
            "GGUF files need the package gguf: pip install 'graphwright[gguf]'."
        ) from error


def _only_file(directory: Path) -> Path | None:
    files = sorted(directory.glob(f"*{_SUFFIX}"))
    found = [each for each in files if not _LATER_PART.fullmatch(each.name)]
    if len(found) > 1:
        from graphwright.ir.errors import FrontendError

        names = ", ".join(each.name for each in found[:8]) + (", …" if len(found) > 8 else "")
        raise FrontendError(
            f"'{directory}' holds {len(found)} GGUF files ({names}): give one of them, such as "
            f"{found[0]}."
        )
    return found[0] if found else None
