"""Recurrences for tests of kernels: both sides of one, and random graphs of a token."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import torch

from graphwright.backends.scans import tiles
from graphwright.backends.scans.stages import Place
from graphwright.backends.scans.tiles import Tiles
from graphwright.backends.tvm.kernels.scan import plan_scan, scan
from graphwright.backends.tvm.kernels.standalone import build
from graphwright.backends.tvm.target import Cpu, host_cpu
from graphwright.ir.op import get_op
from graphwright.ir.scan_step import ScanStep
from graphwright.ir.tolerance import check_close

__all__ = ["Recurrence"]

GAP = 3  # elements between rows
GUARD = 5  # elements behind the states of a slot


@dataclass
class Recurrence:
    """One recurrence by its kernel and by its op; what nobody has written is NaN.

    slots: the slot of each sequence, which start at position 0. small_tiles: of as few elements as
    may be, so that there are some even of small states.
    """

    step: str
    weights: Sequence[torch.Tensor]
    threads: int = 2
    slots: tuple[int, ...] = (2, 0, 3)
    cpu: Cpu = field(default_factory=host_cpu)
    small_tiles: bool = True

    def __post_init__(self) -> None:
        with patch.object(tiles, "LEAST_BYTES", 4 if self.small_tiles else tiles.LEAST_BYTES):
            self._build()

    def _build(self) -> None:
        self.parsed = ScanStep.parse(self.step)
        self.tiles = plan_scan(self.step, self.cpu)
        count = max(self.slots) + 2
        self.stride = self.parsed.state_size + GUARD
        self.memory = np.full((count, self.stride), np.nan, np.float32)
        self.state = torch.full((count, self.parsed.state_size), torch.nan)
        self.lengths = [0] * len(self.slots)
        placeholders = self.parsed.placeholders[len(self.parsed.states) :]
        self.rows = [node.meta["val"] for node in placeholders[: self.parsed.rows]]
        strides = [row.numel() + GAP for row in self.rows]
        kernel = scan(self.step, strides, slot_stride=self.stride, cpu=self.cpu)
        dtypes = [_numpy(node.meta["val"].dtype) for node in placeholders]
        paging = ["float32", "int64", "int32", "int32", "float32"]
        self._entry = build(kernel, ["int32", *dtypes, *paging], self.cpu)["main"]

    def step_over(self, counts: Sequence[int], rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Appends `counts` tokens to the sequences; compares results and states. rows: one a token,
        each."""
        tokens = sum(counts)
        positions = [range(at, at + n) for at, n in zip(self.lengths, counts, strict=True)]
        flat = torch.tensor([each for one in positions for each in one], dtype=torch.int64)
        start = torch.tensor([0, *counts]).cumsum(0).int()
        table = torch.tensor([[slot, 9] for slot in self.slots], dtype=torch.int32)
        want = get_op("cached_scan").reference(
            rows, self.weights, self.state, flat, start, table, step=self.step
        )
        got = self._run(tokens, rows, flat, start, table)
        check_close(got, want)
        self.lengths = [at + n for at, n in zip(self.lengths, counts, strict=True)]
        self.check_states()
        return got

    def check_states(self) -> None:
        """All slots are as the op left them, those of nobody untouched."""
        assert np.isnan(self.memory[:, self.parsed.state_size :]).all()
        for slot, state in enumerate(self.state):
            want = torch.from_numpy(stored_order(self.tiles, state.numpy()))
            got = torch.from_numpy(self.memory[::-1][slot, : self.parsed.state_size].copy())
            if torch.isnan(want).all():
                assert torch.isnan(got).all(), f"slot {slot} is written"
            else:
                check_close(got, want)

    def restart(self, sequence: int) -> None:
        """The sequence starts anew, in the slot as it is."""
        self.lengths[sequence] = 0

    def _run(
        self, tokens: int, rows: Sequence[torch.Tensor], positions: torch.Tensor,
        start: torch.Tensor, table: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        batch = np.array([tokens, len(self.slots), 2, 0, 0, 0, 0, 0], np.int32)
        wide = []
        for row in rows:
            kind = _numpy(row.dtype)
            spread = np.full((tokens, row[0].numel() + GAP), _poison(kind), kind)
            spread[:, : row[0].numel()] = row.reshape(tokens, -1).numpy()
            wide.append(spread)
        out = np.full(tokens * self.parsed.result_size + 16, -7.0, np.float32)
        weights = [
            np.ascontiguousarray(
                weight.permute(self.tiles.weights.get(own, tuple(range(weight.dim()))))
                .numpy()
                .astype(_numpy(weight.dtype))
            )
            for weight, own in zip(self.weights, self.tiles.stages.body.weights, strict=True)
        ]
        arrays = [
            batch, *wide, *weights, self.memory, positions.numpy(), start.numpy(),
            np.ascontiguousarray(table.numpy()), out,
        ]  # fmt: skip
        pointers = [array.ctypes.data for array in arrays]
        # Slot 0 lies last, that of number r so many strides before.
        pointers[-5] += 4 * (len(self.memory) - 1) * self.stride
        self._entry(tokens, self.threads, *(ctypes.c_void_p(each) for each in pointers))
        used = tokens * self.parsed.result_size
        assert (out[used:] == -7.0).all()
        return torch.from_numpy(out[:used]).reshape(tokens, -1)


def stored_order(cut_by: Tiles, state: np.ndarray) -> np.ndarray:
    """The states of one sequence, each tile by tile."""
    parts, at = [], 0
    for number, each in enumerate(cut_by.stages.body.states):
        place = Place("state", number)
        array = state[at : at + each.count].reshape(cut_by.stages.sizes[place])
        at += each.count
        cut = {axis.dims[place]: axis for axis in cut_by.axes}
        sizes: list[int] = []
        outer: list[int] = []
        inner: list[int] = []
        for dim, size in enumerate(array.shape):
            if dim in cut:
                outer.append(len(sizes))
                sizes.append(cut[dim].count)
            inner.append(len(sizes))
            sizes.append(cut[dim].block if dim in cut else size)
        inner = [inner[dim] for dim in cut_by.order(place)]
        parts.append(array.reshape(sizes).transpose([*outer, *inner]).reshape(-1))
    return np.concatenate(parts)


def _numpy(dtype: torch.dtype) -> str:
    return "int8" if dtype is torch.bool else str(dtype).removeprefix("torch.")


def _poison(kind: str) -> float:
    return float("nan") if kind.startswith("float") else 77
