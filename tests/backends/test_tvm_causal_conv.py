"""The convolution kernels of the TVM backend against gw.causal_conv, over sequences of chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from graphwright.backends.tvm.kernels.causal_conv import causal_conv, roll_state
from graphwright.backends.tvm.kernels.standalone import standalone
from graphwright.backends.tvm.lower.causal_conv import taps_layout
from graphwright.backends.tvm.target import host_cpu
from graphwright.ir.op import get_op
from graphwright.ir.tolerance import check_close

CPU = host_cpu()
BLOCKS, GAP = 7, 5  # a block holds other states behind this one
TABLE = np.array([[3, 0], [5, 2], [1, 4]], np.int32)


@dataclass
class Convolution:
    """Both sides of one convolution with their states, which start as NaN."""

    channels: int
    outputs: int
    taps: int
    biased: bool
    threads: int
    lengths: list[int] = field(default_factory=lambda: [0] * len(TABLE))

    def __post_init__(self) -> None:
        torch.manual_seed(self.channels + self.taps)
        self.weight = torch.randn(self.outputs, self.taps)
        self.bias = torch.randn(self.outputs) if self.biased else None
        self.state = torch.full((BLOCKS, self.taps - 1, self.channels), torch.nan)
        self.block = (self.taps - 1) * self.channels + GAP
        self.memory = np.full((BLOCKS, self.block), np.nan, np.float32)
        sizes = {"x_stride": self.channels + 3, "block_stride": self.block}
        convolve = causal_conv(
            self.channels, self.outputs, self.taps, bias=self.biased, cpu=CPU, **sizes
        )
        roll = roll_state(self.channels, self.taps, cpu=CPU, **sizes)
        paging = ["float32", "int64", "int32", "int32"]
        floats = ["float32"] * (2 + self.biased)
        self._convolve = standalone(convolve, ["int32", *floats, *paging, "float32"], CPU)
        self._roll = standalone(roll, ["int32", "float32", *paging], CPU)

    def step(self, *counts: int) -> None:
        """Appends `counts` tokens to the sequences and compares outputs and states."""
        tokens = sum(counts)
        x = torch.randn(tokens, self.channels)
        positions = np.concatenate(
            [np.arange(at, at + n) for at, n in zip(self.lengths, counts, strict=True)]
        )
        start = np.cumsum([0, *counts]).astype(np.int32)
        want = get_op("causal_conv").reference(
            x, self.weight, self.bias, self.state, torch.from_numpy(positions),
            torch.from_numpy(start), torch.from_numpy(TABLE),
        )  # fmt: skip
        rows = np.full((tokens, self.channels + 3), np.nan, np.float32)
        rows[:, : self.channels] = x
        batch = np.array([tokens, len(counts), TABLE.shape[1], 0, 0, 0, 0, 0], np.int32)
        out = np.full(tokens * self.outputs + 64, -7.0, np.float32)
        bias = [] if self.bias is None else [self.bias.numpy()]
        paging = (self.memory, positions, start, TABLE)
        packed = taps_layout().pack(self.weight)
        self._convolve(tokens, self.threads, batch, rows, packed, *bias, *paging, out)
        self._roll(tokens, self.threads, batch, rows, *paging)
        check_close(torch.from_numpy(out[: want.numel()]).reshape(want.shape), want)
        assert (out[want.numel() :] == -7.0).all()
        got = torch.from_numpy(self.memory[:, : self.block - GAP]).reshape(self.state.shape)
        torch.testing.assert_close(got, self.state, rtol=0, atol=0, equal_nan=True)
        assert np.isnan(self.memory[:, self.block - GAP :]).all()
        self.lengths = [at + n for at, n in zip(self.lengths, counts, strict=True)]


@pytest.mark.parametrize(
    ("channels", "outputs", "taps", "biased"),
    (
        (1, 1, 2, False),
        (5, 5, 3, True),
        (16, 16, 4, False),
        (67, 67, 3, True),
        (300, 300, 2, False),
        (6, 6, 11, True),  # more taps than are written out
        (5, 15, 3, False),  # three outputs a channel
    ),
)
def test_ragged_steps(channels: int, outputs: int, taps: int, biased: bool) -> None:
    """Chunks longer and shorter than the kernel, a sequence that waits, decoding, 1 to 3 threads.

    A sequence that ended leaves its rows to the next one, which must not see them.
    """
    for threads in (1, 2, 3):
        convolution = Convolution(channels, outputs, taps, biased, threads)
        for counts in ((1, 4, 0), (1, 1, 2), (1, 1, 1), (20, 0, 3), (1, 2, 1)):
            convolution.step(*counts)
        convolution.lengths[1] = 0
        for counts in ((1, 1, 1), (0, 3, 0), (1, 1, 1)):
            convolution.step(*counts)
