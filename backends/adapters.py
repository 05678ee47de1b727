"""What an artifact says of the adapters that its requests may choose."""

from __future__ import annotations

from typing import Any

from graphwright.backends.blobs import BlobTable
from graphwright.ir.adapters import ADAPTERS
from graphwright.ir.program import Program

__all__ = ["describe_adapters"]


def describe_adapters(program: Program, blobs: BlobTable) -> dict[str, Any]:
    """The part `adapters` of plan.json: the bytes of all, and those that a token with one reads; of
    each its name, where it is from, the SHA-256 of its weights, how many weights it changes and the
    smallest and the largest rank.
    """
    packed = [blob for blob in blobs.describe() if blob["scheme"] == ADAPTERS]
    return {
        "bytes": sum(blob["bytes"] for blob in packed),
        "bytes_per_token": sum(blob["read"] for blob in packed),
        "entries": [
            {
                "name": each.name,
                "source": each.source,
                "sha256": each.sha256,
                "modules": each.modules,
                "ranks": list(each.ranks),
            }
            for each in program.adapters
        ],
    }
