"""Files of text that options name, read as UTF-8."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

__all__ = ["decoded", "read_text"]


def read_text(file: Path) -> str:
    """The text of `file`. Raises RequestError where it cannot be read, or is none."""
    from graphwright.runtime.errors import RequestError

    try:
        return _text(file.read_bytes(), str(file))
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}.") from error


def decoded(file: BinaryIO) -> str:
    """The text of an open `file`. Raises RequestError where it is none."""
    return _text(file.read(), file.name)


def _text(data: bytes, name: str) -> str:
    from graphwright.runtime.errors import RequestError

    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 text: byte {error.start} is wrong.") from error
