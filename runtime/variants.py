"""The variants of an artifact: one step library for each CPU level that it was compiled for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ONLY_LIBRARY", "Variant", "best_variant", "read_variants"]

ONLY_LIBRARY = "lib/step.so"  # of an artifact with one variant


@dataclass(frozen=True)
class Variant:
    """Code for the CPU level `name`, which needs `cpu_features` (as /proc/cpuinfo names them)."""

    name: str
    cpu_features: tuple[str, ...]
    library: str = ONLY_LIBRARY  # its entry in the artifact

    @staticmethod
    def among(name: str, cpu_features: Sequence[str], count: int) -> Variant:
        """One of `count` variants of an artifact."""
        library = ONLY_LIBRARY if count == 1 else f"lib/{name}/step.so"
        return Variant(name, tuple(cpu_features), library)

    def missing(self, features: Collection[str]) -> tuple[str, ...]:
        """What a CPU with `features` lacks to run it, sorted."""
        return tuple(sorted(set(self.cpu_features) - set(features)))


def best_variant(variants: Sequence[Variant], features: Collection[str]) -> Variant | None:
    """The first (they go from the most capable) that a CPU with `features` runs; None: none."""
    return next((each for each in variants if not each.missing(features)), None)


def read_variants(manifest: dict[str, Any]) -> tuple[Variant, ...]:
    """The variants that a manifest lists, or the only one, which it is itself."""
    listed = manifest.get("variants")
    if listed is None:
        return (Variant(str(manifest["target"]), tuple(manifest["cpu_features"])),)
    return tuple(
        Variant(str(each["target"]), tuple(each["cpu_features"]), str(each["library"]))
        for each in listed
    )
