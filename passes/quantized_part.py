"""The results of a weight's quantization, computed once for all that ask for them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graphwright.ir.schemes import Scheme, quantize_weight
from graphwright.ir.weights import Expression, Weight

__all__ = ["KEPT_BYTES", "KeptBytes", "Quantization", "QuantizedPart"]

KEPT_BYTES = 640 << 20


class KeptBytes:
    """A budget of memory, in bytes, for results that will be asked for again."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def reserve(self, count: int) -> bool:
        """Takes `count` bytes, if there are as many left."""
        with self._lock:
            granted = count <= self._left
            self._left -= count if granted else 0
        return granted

    def give_back(self, count: int) -> None:
        """Returns `count` reserved bytes."""
        with self._lock:
            self._left += count


@dataclass(frozen=True, eq=False)
class QuantizedPart(Expression):
    """One output of a quantization that is computed once for all its outputs.

    It is wanted twice, by the reference and by the artifact: the results of the first time are kept
    for the second, as far as the memory for it reaches.
    """

    shared: Quantization | None = None

    @staticmethod
    def all_of(
        weight: Weight, scheme: str, memory: KeptBytes, stored: Sequence[Weight] | None = None
    ) -> list[QuantizedPart]:
        """The outputs of quantize_weight(weight, scheme), or in their place those that are
        `stored`, which stand for the weight exactly.
        """
        shared = Quantization(weight, scheme, memory, stored)
        parts = []
        for output in range(Scheme.parse(scheme).parts):
            e = Expression.of(quantize_weight, weight, scheme, output=output)
            parts.append(
                QuantizedPart(e.shape, e.dtype, e.function, e.args, e.kwargs, output, shared)
            )
        return parts

    @property
    def quantization(self) -> Quantization:
        """What computes all outputs."""
        assert self.shared is not None
        return self.shared

    @property
    def scheme(self) -> str:
        return self.quantization.scheme

    def load(self) -> torch.Tensor:
        assert self.output is not None
        return self.quantization.take(self.output)

    def describe(self) -> str:
        rounding = "calibrated_" if self.quantization.settled else ""
        if self.quantization.stored is not None:
            rounding = "stored_for_"
        return rounding + super().describe()


class Quantization:
    """A quantization whose results are each dropped when nobody is to ask for them again.

    Those that `settle` gives it in the place of its own are kept; those that are `stored` take the
    place of what rounding gives.
    """

    def __init__(
        self, weight: Weight, scheme: str, memory: KeptBytes, stored: Sequence[Weight] | None = None
    ) -> None:
        self.weight, self.scheme, self.stored = weight, scheme, stored
        self.settled = False
        self._memory = memory
        self._waiting: dict[int, torch.Tensor] = {}  # wanted once more in this round
        self._kept: dict[int, torch.Tensor] = {}  # wanted in the next round
        self._reserved = 0
        self._lock = threading.Lock()

    def settle(self, results: Sequence[torch.Tensor]) -> None:
        """From now on the outputs are `results`: as those of quantize_weight, with other values."""
        with self._lock:
            self._drop()
            self._waiting, self._kept = {}, self._packed(results)
            self.settled = True

    def forget(self) -> None:
        """The weight was given other values: what was computed of the old ones is not asked for."""
        with self._lock:
            assert not self.settled, "results that were settled belong to the old values"
            assert self.stored is None, "a checkpoint does not change"
            self._drop()
            self._waiting = {}

    def parts(self) -> list[torch.Tensor]:
        """All outputs."""
        return [self.take(output) for output in range(Scheme.parse(self.scheme).parts)]

    def take(self, output: int) -> torch.Tensor:
        """Output number `output`; computes all when it is not there."""
        with self._lock:
            if self.settled:
                return self._unpacked(output, self._kept[output])
            if output in self._waiting:
                return self._waiting.pop(output)
            if output in self._kept:
                kept = self._unpacked(output, self._kept.pop(output))
                if not self._kept:
                    self._drop()
                return kept
            results = self._results()
            self._keep(results)
            self._waiting = dict(enumerate(results))
            return self._waiting.pop(output)

    def _results(self) -> Sequence[torch.Tensor]:
        if self.stored is not None:
            return [part.load() for part in self.stored]
        return quantize_weight(self.weight.load(), self.scheme)

    def _keep(self, results: Sequence[torch.Tensor]) -> None:
        self._drop()
        four_bits = Scheme.parse(self.scheme).bits == 4
        size = sum(each.nbytes for each in results) - (results[0].nbytes // 2 if four_bits else 0)
        if self._memory.reserve(size):
            self._kept, self._reserved = self._packed(results), size

    def _drop(self) -> None:
        self._memory.give_back(self._reserved)
        self._kept, self._reserved = {}, 0

    def _packed(self, results: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """The outputs by number; two values of four bits are one byte."""
        packed = dict(enumerate(results))
        if Scheme.parse(self.scheme).bits == 4:
            low, high = results[0].chunk(2, dim=-1)
            packed[0] = low & 15 | high << 4
        return packed

    def _unpacked(self, output: int, kept: torch.Tensor) -> torch.Tensor:
        scheme = Scheme.parse(self.scheme)
        if output != 0 or scheme.bits != 4:
            return kept
        low, high = kept << 4 >> 4, kept >> 4  # arithmetic shifts: the sign comes along
        return torch.cat([low & 15, high & 15] if scheme.zero else [low, high], dim=-1)
