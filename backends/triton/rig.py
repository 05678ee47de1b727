"""Timing the candidates of a choice on the GPU of this machine: what `--tune` measures.

    rig = GpuRig(driver, chip)
    tuned = tune(picks.asked, rig, budget=60.0)

A repetition launches the kernel on one copy of its weights after the other, of which there are more
than the L2 cache holds: in a step, too, weights come from memory. Times are those between two
events of the stream, so that the host takes no part in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from graphwright.backends.triton.candidates import (
    few_rows_of,
    one_row_of,
    product_of,
    tiles_of,
)
from graphwright.backends.triton.chips import Chip
from graphwright.backends.triton.cost import Product
from graphwright.backends.triton.cubin import Cubin, compile_cubin
from graphwright.backends.triton.dtypes import ITEM_SIZES
from graphwright.backends.triton.kernels.few_rows import few_rows
from graphwright.backends.triton.kernels.gemv import gemv, gemv_scratch
from graphwright.backends.triton.kernels.kernel import TritonKernel
from graphwright.backends.triton.kernels.linear import linear
from graphwright.backends.triton.kernels.one_row import one_row
from graphwright.backends.tuning import Choice, Run
from graphwright.ir.errors import BackendError

__all__ = ["Gpu", "GpuRig"]

BEYOND_CACHE = 256 << 20  # bytes of weights of a repetition: twice the largest L2 cache
MOST_COPIES = 64
Compile = Callable[[TritonKernel, Chip, frozenset[str]], Cubin]


class Gpu(Protocol):
    """What is needed of runtime/cuda/driver.py's Driver, which this room does not import."""

    def name(self) -> str: ...

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def clear(self, device: int, size: int) -> None: ...

    def write(self, device: int, data: bytes) -> None: ...

    def load(self, cubin: bytes, symbol: str, shared: int) -> Any: ...

    def launch(
        self, function: Any, grid: Sequence[int], threads: int, shared: int,
        pointers: Sequence[int], early: bool,
    ) -> None: ...  # fmt: skip

    def seconds(self, start: Callable[[], None]) -> float: ...


@dataclass(frozen=True)
class GpuRig:
    """The candidates of choices, compiled for `chip` and timed on the GPU of `driver`."""

    driver: Gpu
    chip: Chip
    compile: Compile = field(default=compile_cubin)
    beyond_cache: int = BEYOND_CACHE

    @property
    def machine(self) -> str:
        """The name of the GPU, and what it is compiled for."""
        return f"{self.driver.name()} {self.chip.name}"

    @contextmanager
    def prepare(self, choice: Choice) -> Iterator[Mapping[str, Run]]:
        """A run for each candidate that compiles and fits the chip."""
        product, taken = product_of(choice), list[int]()
        runs: dict[str, Run] = {}
        try:
            for candidate in choice.candidates:
                kernel, scratch = _built(choice.kernel, product, candidate)
                try:
                    code = self.compile(kernel, self.chip, frozenset(n for n, _ in kernel.pointers))
                except BackendError:
                    if candidate == choice.default:
                        raise
                    continue  # it does not fit this chip
                runs[candidate] = self._run(kernel, code, product, scratch, taken)
            yield runs
        finally:
            for address in taken:
                self.driver.free(address)

    def _run(
        self, kernel: TritonKernel, code: Cubin, product: Product, scratch: dict[str, int],
        taken: list[int],
    ) -> Run:  # fmt: skip
        sizes = _sizes(kernel, product) | scratch
        weight = sum(sizes[name] for name in ("weight", "scale", "zero") if name in sizes)
        copies = max(1, min(MOST_COPIES, self.beyond_cache // weight))
        places: dict[str, list[int]] = {}
        for name, _ in kernel.pointers:
            count = copies if name in ("weight", "scale", "zero") else 1
            places[name] = [self._zeros(sizes[name], taken) for _ in range(count)]
        batch = [product.rows, 1, 1, product.rows, 0, 0, 0, 0]
        self.driver.write(places["batch"][0], b"".join(n.to_bytes(4, "little") for n in batch))
        function = self.driver.load(code.code, code.symbol, code.shared)
        grid = kernel.grid({"T": product.rows, "R": product.rows})

        def launch() -> None:
            for number in range(copies):
                pointers = [places[name][number % len(places[name])] for name, _ in kernel.pointers]
                pointers += [0] * code.scratch_pointers
                self.driver.launch(
                    function, grid, 32 * code.warps, code.shared, pointers, code.early
                )

        return lambda: self.driver.seconds(launch) / copies

    def _zeros(self, size: int, taken: list[int]) -> int:
        address = self.driver.allocate(size)
        taken.append(address)
        self.driver.clear(address, max(1, size))
        return address


def _built(kind: str, product: Product, candidate: str) -> tuple[TritonKernel, dict[str, int]]:
    """The kernel of a candidate, and the bytes of the scratch that it asks for."""
    n, k, format, dtype = product.n, product.k, product.format, product.dtype
    partial, counters = 0, 0
    if kind == "one_row":
        kernel = one_row(n, k, format, one_row_of(candidate), dtype=dtype)
    elif kind == "few_rows":
        shape = few_rows_of(candidate)
        kernel = few_rows(n, k, format, shape, product.rows, x_stride=k, dtype=dtype)
    elif kind == "gemv":
        splits = int(candidate)
        partial, counters = gemv_scratch(n, format, splits, dtype)
        kernel = gemv(n, k, format, splits, dtype=dtype)
    else:
        tiles = tiles_of(candidate)
        partial, counters = tiles.scratch_bytes(product.rows, n)
        kernel = linear(n, k, format, tiles, x_stride=k, integer=kind == "linear_int8", dtype=dtype)
    return kernel, {"partial": partial, "counters": counters}


def _sizes(kernel: TritonKernel, product: Product) -> dict[str, int]:
    """Bytes behind each pointer."""
    items = {name: ITEM_SIZES[dtype] for name, dtype in kernel.pointers}
    groups = product.k // product.format.group if product.format.group else 1
    counts = {
        "batch": 8, "x": product.rows * product.k, "x_scales": product.rows * groups,
        "weight": product.format.weight_bytes(product.n, product.k), "scale": product.n * groups,
        "zero": product.n * groups, "out": product.rows * product.n,
    }  # fmt: skip
    return {name: counts[name] * items[name] for name in items if name in counts}
