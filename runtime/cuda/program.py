"""launches.json of an artifact: which kernels a step runs, where their arguments lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.errors import ArtifactError

__all__ = ["FORMAT", "LAUNCHES", "Bucket", "KernelCode", "Launch", "Program"]

LAUNCHES = "gpu/launches.json"
FORMAT = 5  # of that file; since 3 the first launch of a step takes tokens that the step in front
# has chosen, where the host names their rows, and the last one leaves them in the GPU's memory;
# since 4 it says which kernels may begin early; since 5 a step may draw tokens


@dataclass(frozen=True)
class KernelCode:
    """What a launch of a kernel needs beside its pointers. early: may it begin before what is in
    front of it has ended? Its code waits for that itself.
    """

    symbol: str
    warps: int
    shared: int
    scratch_pointers: int
    early: bool


@dataclass(frozen=True)
class Launch:
    """operands: (region, bytes from its start), one a pointer."""

    kernel: str
    grid: tuple[int, int, int]
    operands: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Bucket:
    """The launches of steps with at most so many tokens and sampled rows; `largest` go on to find
    the largest logit of each row, `drawn` behind them draw the tokens of rows that ask for it.
    """

    tokens: int
    rows: int
    launches: tuple[Launch, ...]
    largest: tuple[Launch, ...]
    drawn: tuple[Launch, ...]


@dataclass(frozen=True)
class Program:
    """The part of launches.json that is for one chip. counter_bytes: of the region `counters`."""

    chip: str
    kernels: dict[str, KernelCode]
    entries: dict[str, tuple[Bucket, ...]]
    counter_bytes: int

    @classmethod
    def read(cls, artifact: Artifact, capability: int) -> Program:
        """For a GPU of this compute capability: the newest chip not newer than it and of the same
        generation, as cubins run on later minor versions only. Raises ArtifactError.
        """
        found = artifact.json(LAUNCHES)
        if isinstance(found, dict) and found.get("format") != FORMAT:
            raise ArtifactError(
                f"{LAUNCHES} of {artifact.path} has format {found.get('format', 1)}, and this "
                f"graphwright runs format {FORMAT}: another version wrote it. Compile it again."
            )
        try:
            chips = {int(name.removeprefix("sm_")): name for name in found["chips"]}
            fitting = [a for a in chips if a <= capability and a // 10 == capability // 10]
            if not fitting:
                raise ArtifactError(
                    f"{artifact.path} was compiled for {', '.join(found['chips'])}; this GPU is "
                    f"sm_{capability}. Compile it again with --target cuda:sm_{capability}."
                )
            chip = chips[max(fitting)]
            kernels = {
                name: KernelCode(
                    str(each["symbol"]), int(each["warps"]), int(each["shared"]),
                    int(each["scratch_pointers"]), bool(each["early"]),
                )
                for name, each in found["kernels"][chip].items()
            }  # fmt: skip
            entries = {
                name: tuple(_bucket(each) for each in buckets)
                for name, buckets in found["entries"].items()
            }
            counter_bytes = int(found["counter_bytes"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{LAUNCHES} of {artifact.path} is incomplete: {error!r}."
            ) from error
        return cls(chip, kernels, entries, counter_bytes)

    def bucket(self, entry: str, tokens: int, rows: int) -> Bucket:
        """The smallest bucket that such a step fits into."""
        for bucket in self.entries[entry]:
            if bucket.tokens >= tokens and bucket.rows >= rows:
                return bucket
        raise AssertionError(f"'{entry}' takes no {tokens} tokens with {rows} sampled rows")


def _bucket(found: dict[str, Any]) -> Bucket:
    launches, largest, drawn = (
        tuple(
            Launch(
                str(kernel),
                (int(grid[0]), int(grid[1]), int(grid[2])),
                tuple((str(region), int(offset)) for region, offset in operands),
            )
            for kernel, grid, operands in found[name]
        )
        for name in ("launches", "largest", "drawn")
    )
    return Bucket(int(found["tokens"]), int(found["rows"]), launches, largest, drawn)
