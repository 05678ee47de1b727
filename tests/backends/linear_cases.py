"""What the tests of the matrix kernels share: a product's parameters, and how it is checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.standalone import Run, assembly
from graphwright.backends.tvm.target import Cpu, cpu_by_name, host_cpu, host_features
from graphwright.ir.activations import ACTIVATIONS

X86 = ("x86-64-v3", "x86-64-v4", "x86-64-v4-vnni", "x86-64-v4-amx")
HERE = [name for name in X86 if cpu_by_name(name).features <= host_features()] or [host_cpu().name]
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 20, 50)  # around the limits of few and many, of blocks


def runnable(name: str) -> Cpu:
    cpu = cpu_by_name(name)
    if not cpu.features <= host_features():
        pytest.skip(f"this machine has no {name}")
    return cpu


@dataclass(frozen=True)
class Case:
    """One matrix product: its static parameters, and the sizes of a call."""

    n: int
    k: int
    cpu: str
    max_rows: int = 512
    rows: int = 1
    threads: int = 1
    padding: int = 0  # elements between the rows of x, and of the residual
    bias: bool = False
    activation: str | None = None
    residual: bool = False
    scheme: str = "w8"  # of a quantized product

    @property
    def options(self) -> dict[str, object]:
        return {
            "bias": self.bias,
            "activation": self.activation,
            "residual_stride": self.n + self.padding if self.residual else None,
            "max_rows": self.max_rows,
            "cpu": cpu_by_name(self.cpu),
        }

    @property
    def epilogue_dtypes(self) -> list[str]:
        return ["float32"] * (self.bias + self.residual + 1)

    def finish(self, y: np.ndarray, seed: int = 1) -> tuple[list[np.ndarray], np.ndarray]:
        """The epilogue's operands, and what it makes of the float64 sums `y`."""
        random = np.random.default_rng(seed)
        operands = []
        if self.bias:
            operands.append(random.standard_normal(self.n, np.float32))
            y = y + operands[-1]
        y = ACTIVATIONS[self.activation or "none"](torch.from_numpy(y)).numpy()
        if self.residual:
            residual = random.standard_normal((self.rows, self.n + self.padding), np.float32)
            operands.append(residual)
            y = y + residual[:, : self.n]
        return operands, y


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=4e-6 * max(1.0, np.abs(want).max()))


def run_into(run: Run, case: Case, inputs: list[np.ndarray], memory: np.ndarray) -> None:
    """Runs with `memory` as the output, of which only rows * n may change."""
    run(case.rows, case.threads, *inputs, memory)
    assert np.isnan(memory[case.rows * case.n :]).all(), "written behind the end"


def instructions(kernel: Kernel, dtypes: list[str], cpu: Cpu) -> set[str]:
    text = assembly(kernel, dtypes, cpu)
    assert "AllocWorkspace" not in text, "a kernel allocates nothing"
    lines = (line.split() for line in text.splitlines())
    words = {words[0] for words in lines if words}
    return words | {register for register in ("%ymm", "%zmm") if register in text}
