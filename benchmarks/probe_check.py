"""Is a pure read never slower than a matrix kernel that reads the same bytes?

    python benchmarks/probe_check.py [rounds [threads]]

The probe and our decode kernels take turns on the same memory. If a kernel got more bytes a second
than the probe, shares of the probe would mean nothing: exit code 1.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time

import numpy as np
from probe import Probe, huge_pages

from graphwright.backends.tvm.kernels.linear_quantized import linear_quantized
from graphwright.backends.tvm.kernels.quantize_rows import group_count, row_size
from graphwright.backends.tvm.kernels.standalone import build
from graphwright.backends.tvm.target import host_cpu
from graphwright.ir.schemes import Scheme

N, K = 5632, 2048
TURN = 0.25  # seconds
ALLOWED = 1.03  # what the median of neighbours may show, by noise


class Product:
    """One token by weights that fill the probe's memory."""

    def __init__(self, scheme: Scheme, memory: np.ndarray, threads: int) -> None:
        cpu, groups = host_cpu(), group_count(K, scheme.group)
        wide = scheme.bits == 8
        types = ["int8", "float32", "int8" if wide else "uint8"]
        types += ["float32" if wide else "float16", "float32"]
        kernel = linear_quantized(N, K, scheme, max_rows=8, cpu=cpu)
        self._entry, self._threads = build(kernel, types, cpu)["main"], threads
        weight = N * K * scheme.bits // 8
        scale = N * groups * (4 if wide else 2)
        self._scales = huge_pages(scale * (memory.nbytes // weight))
        self._scales.view(np.float32 if wide else np.float16)[:] = 0.01
        self._rows = [huge_pages(row_size(K, scheme.group)), huge_pages(4 * groups),
                      huge_pages(4 * N)]  # fmt: skip
        x, x_scale, out = (row.ctypes.data for row in self._rows)
        self._calls = [
            [x, x_scale, memory.ctypes.data + i * weight, self._scales.ctypes.data + i * scale, out]
            for i in range(memory.nbytes // weight)
        ]
        self._bytes = weight + scale

    def turn(self) -> float:
        """GB/s over TURN seconds, after one pass that is not counted."""
        self._pass()
        start, passes = time.perf_counter(), 0
        while time.perf_counter() - start < TURN:
            self._pass()
            passes += 1
        size = passes * len(self._calls) * self._bytes
        return size / (time.perf_counter() - start) / 1e9

    def _pass(self) -> None:
        for pointers in self._calls:
            self._entry(1, self._threads, *(ctypes.c_void_p(each) for each in pointers))


def main() -> None:
    """Prints the medians, the ratio of neighbours and that of bests."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    probe = Probe(threads)
    products = {name: Product(Scheme.parse(name), probe.memory, threads)
                for name in ("w8", "w4g128", "w4g32")}  # fmt: skip
    read, rates = list[float](), {name: list[float]() for name in products}
    for _ in range(rounds):
        read.append(probe.read(probe.memory, TURN))
        for name, product in products.items():
            rates[name].append(product.turn())
    read.append(probe.read(probe.memory, TURN))
    print("probe: {} streams, {} bytes ahead;".format(*probe.loop),
          f"median {statistics.median(read):.1f} GB/s, best {max(read):.1f}")  # fmt: skip
    above = False
    for name, found in rates.items():
        pairs = [2 * g / (a + b) for g, a, b in zip(found, read, read[1:], strict=False)]
        share = statistics.median(pairs)
        above |= share > ALLOWED
        print(
            f"{name:7} median {statistics.median(found):.1f} GB/s, best {max(found):.1f}; "
            f"of the probe: neighbours {share:.2f}, bests {max(found) / max(read):.2f}"
        )
    raise SystemExit(1 if above else 0)


if __name__ == "__main__":
    main()
