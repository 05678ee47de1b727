"""Rounding integer weights by the inputs that some sequences of tokens give them.

The sequences go through the program in two lanes, one with the weights as they were and one with
what is rounded already. Each product is rounded so that it gives, of the inputs in the second lane,
what it gave in the first: its integers also make up for what was lost before it, in its input and
in the residual that is added to its result. Asking for the second lane's own results instead is
GPTQ; this is GPTAQ (Li et al. 2025, arXiv:2504.02692), here with residuals.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from graphwright.ir.calibrated_rounding import damping_for, round_by_inputs
from graphwright.ir.interpreter import Step, steps_of
from graphwright.ir.ops.routed_linear import rows_of_slots
from graphwright.ir.program import Program
from graphwright.passes.calibration_lane import LINEAR, ROUTED, Lane, quantization_of
from graphwright.passes.quantized_part import Quantization

__all__ = ["Calibration", "calibrate", "threads_for"]

_LARGE = 1 << 20  # elements of a weight from which several threads multiply by it


@dataclass(frozen=True, eq=False)
class Calibration:
    """Sequences of token ids, int64 [n] each, such as the model is going to see.

    origin: where they are from, where that is to be said.
    """

    sequences: tuple[torch.Tensor, ...]
    origin: str = ""

    @property
    def tokens(self) -> int:
        """How many there are in all."""
        return sum(map(len, self.sequences))

    @property
    def digest(self) -> str:
        """sha256 of the sequences."""
        text = ";".join(",".join(map(str, each.tolist())) for each in self.sequences)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def record(self) -> str:
        """What an artifact says of them."""
        return f"{self}, sha256 {self.digest}"

    def __str__(self) -> str:
        text = f"{self.tokens} tokens in {len(self.sequences)} sequences"
        return f"{text} {self.origin}" if self.origin else text


@dataclass(frozen=True)
class _Product:
    """The step at `place` multiplies by what `quantization` makes of a weight."""

    place: int
    step: Step
    quantization: Quantization


@dataclass
class _Sums:
    """Of the `count` rows that one matrix [N, K] multiplies: x in the rounded lane, y in the other,
    and by how much the residual of its result is larger in the other.

    moments: XᵀX, cross: Xᵀ(Y - X), residual: Xᵀ(R_y - R_x) [K, N] where there is one.
    """

    count: int
    moments: torch.Tensor
    cross: torch.Tensor | None = None
    residual: torch.Tensor | None = None

    def add(self, other: _Sums) -> None:
        """The sums of both."""
        self.count += other.count
        self.moments += other.moments
        for name in ("cross", "residual"):
            more = getattr(other, name)
            if more is not None:
                getattr(self, name).add_(more)

    def missing(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Xᵀ(what the products of the other lane have more) [K, N]."""
        if self.cross is None:
            return None
        missing = self.cross @ weight.T.double()
        return missing if self.residual is None else missing + self.residual


def calibrate(program: Program, calibration: Calibration) -> str:
    """Settles the integer weights of all products of `program`, in which they are.

    Tables that are only read by id keep theirs, and so do weights that are stored as integers. A
    weight that several steps read is settled first, by the sum of the inputs that its products get
    while all weights are floats: it must be known before the first of them. Returns what was done,
    as text.
    """
    rounding = _Calibrating(program, calibration)
    with torch.no_grad(), threads_for(rounding.largest):
        rounding.settle_shared()
        rounding.settle()
    return rounding.report()


class _Calibrating:
    """One calibration of a program."""

    def __init__(self, program: Program, calibration: Calibration) -> None:
        self._program, self._calibration = program, calibration
        self._steps = steps_of(program)
        self._products = [
            _Product(place, step, found)
            for place, step in enumerate(self._steps)
            if step.target in (LINEAR, ROUTED)
            and (found := quantization_of(program, step)) is not None
            and found.stored is None
        ]
        self._experts = self._unreached = 0

    @property
    def largest(self) -> int:
        """Elements of the largest matrix."""
        return max((math.prod(p.quantization.weight.shape[-2:]) for p in self._products), default=0)

    def settle_shared(self) -> None:
        """Settles what more than one step reads."""
        readers = Counter(id(quantization_of(self._program, step)) for step in self._steps)
        products = [each for each in self._products if readers[id(each.quantization)] > 1]
        if not products:
            return
        lane = self._lane(floats=True)
        sums: dict[int, list[_Sums]] = {}
        for product in products:
            lane.advance(product.place)
            for_each_matrix = _sums(product, lane, None)
            known = sums.setdefault(id(product.quantization), for_each_matrix)
            if known is not for_each_matrix:
                for total, more in zip(known, for_each_matrix, strict=True):
                    total.add(more)
        for product in products:
            if not product.quantization.settled:
                self._settle(product.quantization, sums[id(product.quantization)])

    def settle(self) -> None:
        """Settles what is not settled yet."""
        exact, rounded = self._lane(floats=True), self._lane(floats=False)
        for product in self._products:
            if not product.quantization.settled:
                exact.advance(product.place)
                rounded.advance(product.place)
                self._settle(product.quantization, _sums(product, rounded, exact))

    def report(self) -> str:
        """What was done."""
        count = len({id(each.quantization) for each in self._products})
        text = f"rounded by the inputs that {self._calibration} give to {count} weights"
        if self._unreached:
            text += f"; no token came to {self._unreached} of {self._experts} matrices of experts"
        return text

    def _lane(self, *, floats: bool) -> Lane:
        return Lane(self._program, self._steps, self._calibration.sequences, floats=floats)

    def _settle(self, quantization: Quantization, sums: Sequence[_Sums]) -> None:
        weight = quantization.weight.load()
        matrices = weight if weight.dim() == 3 else weight[None]
        found = [
            round_by_inputs(
                matrix,
                quantization.scheme,
                each.moments,
                each.missing(matrix),
                damping=damping_for(matrix.shape[-1], each.count),
            )
            for matrix, each in zip(matrices, sums, strict=True)
        ]
        outputs = (torch.stack(parts) for parts in zip(*found, strict=True))
        quantization.settle([part.reshape(*weight.shape[:-1], -1) for part in outputs])
        if weight.dim() == 3:
            self._experts += len(sums)
            self._unreached += sum(each.count == 0 for each in sums)


def _sums(product: _Product, rounded: Lane, exact: Lane | None) -> list[_Sums]:
    """Those of each matrix of the weight, over all batches; without `exact` only the moments."""
    step = product.step
    xs = rounded.values(step.args[0])
    ys: list[Any] = [None] * len(xs) if exact is None else exact.values(step.args[0])
    if step.target is LINEAR:
        more: list[Any] = _residuals(step, rounded, exact) or [None] * len(xs)
        flat = ([_flat(each) for each in row] for row in zip(xs, ys, more, strict=True))
        return [_total(flat)]
    experts = rounded.values(step.args[1])
    rows = [rows_of_slots(x, e) for x, e in zip(xs, experts, strict=True)]
    others = ys
    if exact is not None:
        # A row that goes to another expert in the other lane has nothing to be compared with.
        routes = zip(rows, ys, experts, exact.values(step.args[1]), strict=True)
        others = [
            torch.where((route == other)[..., None], rows_of_slots(y, other), x)
            for x, y, route, other in routes
        ]
    return [
        _total(
            [x[route == e], None if y is None else y[route == e], None]
            for x, y, route in zip(rows, others, experts, strict=True)
        )
        for e in range(product.quantization.weight.shape[0])
    ]


def _residuals(step: Step, rounded: Lane, exact: Lane | None) -> list[torch.Tensor] | None:
    """By how much the residual of a linear is larger in the exact lane, for each batch."""
    residual = step.args[4] if len(step.args) > 4 else None
    if exact is None or residual is None or step.kwargs["activation"] != "none":
        return None
    pairs = zip(exact.values(residual), rounded.values(residual), strict=True)
    return [wanted - got for wanted, got in pairs]


def _flat(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.reshape(-1, x.shape[-1])


def _total(rows: Iterable[Sequence[Any]]) -> _Sums:
    """Of x, y and the residual's difference, each [n, K] and perhaps None, for each batch."""
    total: _Sums | None = None
    for x, y, residual in rows:
        left = x.float().T
        moments, cross, more = (
            None if right is None else (left @ right).double()
            for right in (left.T, None if y is None else y.float() - left.T, residual)
        )
        assert moments is not None
        sums = _Sums(len(x), moments, cross, more)
        if total is None:
            total = sums
        else:
            total.add(sums)
    assert total is not None
    return total


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """Torch on all CPUs where weights have so many elements that it pays.

    Threads that spin on a busy machine made it four times slower for a model of 260,000 parameters.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if elements >= _LARGE else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
