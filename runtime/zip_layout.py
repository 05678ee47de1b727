"""Where things are inside a stored zip file, and a digest over all that is not an entry's data.

zipfile reads the directory; the offsets that mapping needs are worked out here. The file ends in a
zip comment holding the digest: with the hashes in the manifest, every byte is covered.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from graphwright.runtime.errors import ArtifactError

__all__ = [
    "ALIGNMENT",
    "COMMENT_PREFIX",
    "EMPTY_COMMENT",
    "Range",
    "aligned_extra",
    "read_layout",
    "structure_digest",
]

ALIGNMENT = 4096  # of entries that are mapped or loaded
COMMENT_PREFIX = b"graphwright sha256:"
EMPTY_COMMENT = COMMENT_PREFIX + b"0" * 64
_LOCAL_HEADER = struct.Struct("<4sHHHHHLLLHH")
_PADDING_ID = 0xD935  # the extra field that Android's zipalign uses for the same purpose
_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    struct.error,
    UnicodeError,
    ValueError,
    OverflowError,
    EOFError,
)


@dataclass(frozen=True)
class Range:
    """Bytes [offset, offset + size) of the file, and the CRC-32 that the directory gives."""

    offset: int
    size: int
    crc: int


def aligned_extra(header_offset: int, name: str, zip64: bool) -> bytes:
    """The extra field that makes the data of an entry begin at a multiple of ALIGNMENT."""
    fixed = header_offset + _LOCAL_HEADER.size + len(name.encode()) + (20 if zip64 else 0)
    padding = -(fixed + 4) % ALIGNMENT
    return struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)


def read_layout(file: BinaryIO, size: int, path: object) -> dict[str, Range]:
    """Data range of each entry, by name, in file order. Raises ArtifactError."""
    file.seek(0)
    if file.read(2) != b"PK":
        raise ArtifactError(f"{path} is not a graphwright artifact: it does not begin like one.")
    try:
        with zipfile.ZipFile(file) as archive:
            comment, entries = archive.comment, archive.infolist()
        if len(comment) != len(EMPTY_COMMENT) or not comment.startswith(COMMENT_PREFIX):
            raise ArtifactError(
                f"{path} is a zip file but not a graphwright artifact, or its end is damaged."
            )
        return {entry.filename: _range(file, entry, size, path) for entry in entries}
    except _DAMAGE as error:
        raise ArtifactError(
            f"{path} is truncated or damaged: the directory at its end cannot be read "
            f"({size} bytes; {error})."
        ) from error


def _range(file: BinaryIO, entry: zipfile.ZipInfo, size: int, path: object) -> Range:
    file.seek(entry.header_offset)
    header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    offset = entry.header_offset + _LOCAL_HEADER.size + header[9] + header[10]
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
    if not stored or offset + entry.file_size > size:
        raise ArtifactError(
            f"{path} is damaged: its entry '{entry.filename}' of {entry.file_size} bytes at "
            f"{offset} is not stored data inside the file's {size} bytes."
        )
    return Range(offset, entry.file_size, entry.CRC)


def structure_digest(file: BinaryIO, size: int, ranges: Iterable[Range]) -> str:
    """sha256 of all bytes outside `ranges`, without the 64 at the very end that hold the digest."""
    digest = hashlib.sha256()
    position = 0
    for part in sorted(ranges, key=lambda part: part.offset):
        _feed(digest, file, position, part.offset)
        position = max(position, part.offset + part.size)
    _feed(digest, file, position, size - 64)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, file: BinaryIO, begin: int, end: int) -> None:
    file.seek(begin)
    while begin < end:
        data = file.read(min(end - begin, 1 << 20))
        if not data:
            return
        digest.update(data)
        begin += len(data)
