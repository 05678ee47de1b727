"""What an artifact holds for GPUs: cubins, how to launch them, and the generated sources.

gpu/launches.json            buckets, their launches, and what each cubin needs
gpu/sm_90/NAME.cubin
gpu/source/NAME.py           of regions, for people; nothing reads them
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graphwright.backends.triton.build import LoweredProgram
from graphwright.backends.triton.chips import Chip
from graphwright.backends.triton.cubin import ALIGNMENT, Cubin, compile_cubins
from graphwright.backends.triton.kernels.kernel import TritonKernel
from graphwright.backends.triton.launches import Launch
from graphwright.backends.triton.registry import LedgerEntry
from graphwright.runtime.variants import Variant

__all__ = ["LAUNCHES", "GpuPackage", "package"]

LAUNCHES = "gpu/launches.json"
FORMAT = 5  # of it, as runtime/cuda/program.py reads it


@dataclass(frozen=True)
class GpuPackage:
    """A lowered program with its machine code, by chip and by the variant's name."""

    lowered: LoweredProgram
    chips: tuple[Chip, ...]
    cubins: dict[str, dict[str, Cubin]]

    def launches(self) -> dict[str, Any]:
        """The content of launches.json.

        `largest` of a bucket follow its launches where the step chooses its tokens, and `drawn`
        follow those where some of them are drawn.
        counter_bytes: the size of the region `counters`. A launch is [kernel, grid, [[region,
        offset], …]]; offsets are bytes, those of weights from the start of the region. An `early`
        kernel waits by itself for the launches in front of it, and may begin before they end.
        """
        blobs = self.lowered.blobs.offsets()

        def place(launch: Launch) -> list[Any]:
            operands = [
                [each.parameter, each.offset + (blobs[each.blob] if each.blob else 0)]
                for each in launch.operands
            ]
            return [variant_name(launch), list(launch.kernel.grid(bucket.size)), operands]

        buckets: dict[str, list[dict[str, Any]]] = {}
        for bucket in self.lowered.buckets:
            buckets.setdefault(bucket.entry, []).append(
                {
                    "tokens": bucket.tokens,
                    "rows": bucket.rows,
                    "launches": [place(launch) for launch in bucket.launches],
                    "largest": [place(launch) for launch in bucket.largest],
                    "drawn": [place(launch) for launch in bucket.drawn],
                }
            )
        kernels = {
            chip: {
                name: {
                    "symbol": cubin.symbol, "warps": cubin.warps, "shared": cubin.shared,
                    "scratch_pointers": cubin.scratch_pointers, "registers": cubin.registers,
                    "stack": cubin.stack, "early": cubin.early,
                }
                for name, cubin in cubins.items()
            }
            for chip, cubins in self.cubins.items()
        }  # fmt: skip
        return {
            "format": FORMAT, "chips": [chip.name for chip in self.chips], "kernels": kernels,
            "entries": buckets, "counter_bytes": self.lowered.counter_bytes,
        }  # fmt: skip

    @property
    def plan(self) -> dict[str, Any]:
        """The content of plan.json."""
        return self.lowered.plan

    @property
    def ledger(self) -> tuple[LedgerEntry, ...]:
        """Who lowered what."""
        return self.lowered.ledger

    @property
    def target(self) -> str:
        """What the artifact is for, as --target names it."""
        return f"cuda:{','.join(chip.name for chip in self.chips)}"

    @property
    def facts(self) -> dict[str, Any]:
        """What phases.json says of each phase on a CPU: nothing here."""
        return {}

    def variant(self, count: int) -> Variant:
        """How an artifact's manifest names it: any CPU drives a GPU."""
        return Variant(self.target, (), LAUNCHES)

    @property
    def weight_bytes(self) -> int:
        """Size of the weights region."""
        return self.lowered.weight_bytes

    def weights(self, on_blob: Callable[[str], None] | None = None) -> Iterator[memoryview]:
        """The weights region in pieces."""
        return self.lowered.weights(on_blob)

    def files(self, variant: Variant) -> Iterator[tuple[str, bytes]]:
        """The entries of the artifact, by name."""
        yield variant.library, json.dumps(self.launches(), separators=(",", ":")).encode()
        for chip, cubins in self.cubins.items():
            for name, cubin in cubins.items():
                yield f"gpu/{chip}/{name}.cubin", cubin.code
        for name, source in self.lowered.sources.items():
            yield f"gpu/source/{name}.py", source.encode()


def aligned_pointers(launch: Launch) -> frozenset[str]:
    """The pointers of a launch that are multiples of ALIGNMENT; regions and blobs start at such."""
    return frozenset(
        name
        for (name, _), operand in zip(launch.kernel.pointers, launch.operands, strict=True)
        if operand.offset % ALIGNMENT == 0
    )


def variant_name(launch: Launch) -> str:
    """The kernel's name, with the numbers of the pointers that are not aligned."""
    aligned = aligned_pointers(launch)
    names = [name for name, _ in launch.kernel.pointers]
    rest = "_".join(str(i) for i, name in enumerate(names) if name not in aligned)
    return f"{launch.kernel.name}_u{rest}" if rest else launch.kernel.name


def package(
    lowered: LoweredProgram, chips: Sequence[Chip], *, threads: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> GpuPackage:  # fmt: skip
    """Compiles every kernel for every chip, by so many threads. Raises BackendError."""
    variants: dict[str, tuple[TritonKernel, frozenset[str]]] = {}
    for bucket in lowered.buckets:
        for launch in bucket.all_launches:
            variants[variant_name(launch)] = (launch.kernel, aligned_pointers(launch))
    say(f"compiling {len(variants)} kernels for {', '.join(chip.name for chip in chips)}")
    wanted = [
        (chip, name, kernel, aligned)
        for chip in chips
        for name, (kernel, aligned) in variants.items()
    ]
    made = compile_cubins([(kernel, chip, aligned) for chip, _, kernel, aligned in wanted], threads)
    cubins: dict[str, dict[str, Cubin]] = {chip.name: {} for chip in chips}
    for (chip, name, _, _), cubin in zip(wanted, made, strict=True):
        cubins[chip.name][name] = cubin
    return GpuPackage(lowered, tuple(chips), cubins)
