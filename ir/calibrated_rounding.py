"""Rounding a weight so that its products with given inputs stay, not its values.

X (W - Q)ᵀ is what a linear's result loses when W becomes Q. Its squared norm over the inputs X is
a quadratic form of each row of W - Q with the matrix H = XᵀX, which is all that is kept of X.
Columns are rounded one after the other, each with what the errors before it leave to it:
GPTQ (Frantar et al. 2022, arXiv:2210.17323), in the form of QuIP (Chee et al. 2023,
arXiv:2307.13304, LDLQ), which needs one Cholesky factor of H and no inverse. Sweeps then go on
from there: scales and integers are moved one at a time to where the form is least, as in QuantEase
(Behdin et al. 2023, arXiv:2309.01885), so that no sweep makes it larger.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from graphwright.ir.schemes import Scheme, check_scales, nearest

__all__ = ["SWEEPS", "damping_for", "round_by_inputs"]

SWEEPS = 3

_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of a group's range, with zero points
_BLOCK = 128  # columns between two products with all errors before them
_ELEMENTS_AT_ONCE = 1 << 23  # of a weight rounded together; there are five such tensors of float32


def damping_for(columns: int, inputs: int) -> float:
    """What to add to H's diagonal, as a share of its mean, when H is the sum of so many `inputs`.

    H has no inverse when they are fewer than columns, and what few of them have in common need not
    be so in others. Measured on a model of 260,000 parameters with 64 columns, by what it lost on
    text that was neither given nor reported on: of 0.01 to 1, 0.1 was best for 16,384 inputs; 64
    need 3 to be no worse than nearest, for 512 anything from 0.3 will do.
    """
    return 0.1 + 3 * columns / max(1, inputs)


def round_by_inputs(
    weight: torch.Tensor,
    scheme: str,
    moments: torch.Tensor,
    missing: torch.Tensor | None = None,
    *,
    damping: float,
    sweeps: int = SWEEPS,
) -> tuple[torch.Tensor, ...]:
    """weight [N, K] float, moments [K, K] = XᵀX of its inputs X -> the parts of `scheme`.

    As of quantize_weight, and in the same ranges. missing [K, N] = XᵀZ: the products are to become
    XWᵀ + Z, so that it is W + ((H + damping)⁻¹ XᵀZ)ᵀ that is rounded. Columns whose inputs are all
    zero are rounded to nearest. damping: a share of the mean of H's diagonal. Raises PassError
    where float16 does not hold a scale.
    """
    parsed = Scheme.parse(scheme)
    rows, inputs = weight.shape
    form = _Form.of(moments, damping)
    if missing is not None:
        weight = weight.float() + form.solve(missing).T.float()
    step = max(1, _ELEMENTS_AT_ONCE // inputs)
    found = [
        _Rounding(weight[begin : begin + step].float(), parsed, form).parts(sweeps)
        for begin in range(0, rows, step)
    ]
    parts = tuple(torch.cat(part) for part in zip(*found, strict=True))
    check_scales(weight, parts[1])
    return parts


@dataclass(frozen=True)
class _Form:
    """The damped H [K, K] and what follows from H = F Fᵀ with F upper triangular.

    left[j, k]: what column k, rounded after column j, makes up for each unit of j's error; F with
    its columns divided by their diagonal elements. alone [K]: what a unit of error in a column
    costs when the later ones make up for it. factor: F in float64.
    """

    matrix: torch.Tensor
    left: torch.Tensor
    alone: torch.Tensor
    factor: torch.Tensor

    @staticmethod
    def of(moments: torch.Tensor, damping: float) -> _Form:
        matrix = moments.double()
        mean = float(matrix.diagonal().mean())
        added = damping * mean if mean > 0 else 1.0
        matrix = matrix + added * torch.eye(len(matrix), dtype=matrix.dtype)
        # With rows and columns turned round, the lower factor is the upper one of H.
        factor = torch.linalg.cholesky(matrix.flip(0, 1)).flip(0, 1)
        left = (factor / factor.diagonal()).triu(1)
        alone = factor.diagonal().square()
        return _Form(matrix.float(), left.float(), alone.float(), factor)

    def solve(self, right: torch.Tensor) -> torch.Tensor:
        """H⁻¹ right, [K, N] in float64."""
        half = torch.linalg.solve_triangular(self.factor, right.double(), upper=True)
        solution: torch.Tensor = torch.linalg.solve_triangular(self.factor.T, half, upper=False)
        return solution


class _Rounding:
    """Some rows of a weight while they are rounded; columns come first: [K, N]."""

    def __init__(self, weight: torch.Tensor, scheme: Scheme, form: _Form) -> None:
        self._scheme, self._form = scheme, form
        self._weight = weight.T.contiguous()
        inputs, rows = self._weight.shape
        groups = scheme.groups(inputs)
        self._size = inputs // groups
        self._integers = torch.zeros_like(self._weight)
        self._error = torch.zeros_like(self._weight)  # weight - value of the integers
        self._scale = torch.zeros(groups, rows)
        self._zero = torch.zeros(groups, rows)

    def parts(self, sweeps: int) -> tuple[torch.Tensor, ...]:
        """Rounds, and returns what quantize_weight does."""
        self._round()
        for _ in range(sweeps):
            self._sweep()
        scale = self._scale.T.contiguous()
        parts = (
            self._integers.T.contiguous().to(torch.int8),
            scale if self._scheme.bits == 8 else scale.half(),
            self._zero.T.contiguous().to(torch.uint8),
        )
        return parts[: self._scheme.parts]

    def _round(self) -> None:
        """Column by column, from the first: GPTQ."""
        left = self._form.left
        for group, block in self._blocks():
            begin, end = block.start, block.stop
            wanted = self._weight[block] + left[:begin, block].T @ self._error[:begin]
            if begin == group * self._size:
                self._choose_scale(group, wanted)
            for column in range(begin, end):
                self._set(group, column, wanted[column - begin])
                later = left[column, column + 1 : end, None]
                wanted[column - begin + 1 :] += later * self._error[column]

    def _choose_scale(self, group: int, wanted: torch.Tensor) -> None:
        """The scales of plain rounding for what is wanted of a group. With zero points, which span
        the whole range, those for a share of the range if that loses less."""
        whole = slice(group * self._size, (group + 1) * self._size)
        columns = wanted if len(wanted) == self._size else self._weight[whole]
        values, weights = columns.T.contiguous(), self._form.alone[whole]
        least = values.new_zeros(len(values), 1)
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        for share in _SHARES if self._scheme.zero else (1.0,):
            _, scale, zero = nearest(values.clamp(low * share, high * share), self._scheme)
            scale, zero = scale.float(), zero.float()
            lost = values - self._value(self._integer(values, scale, zero), scale, zero)
            loss = (lost.square() * weights).sum(1, keepdim=True)
            better = (
                (loss < least)[:, 0] if share < 1 else torch.ones(len(values), dtype=torch.bool)
            )
            least[better] = loss[better]
            self._scale[group][better] = scale[better, 0]
            self._zero[group][better] = zero[better, 0]

    def _sweep(self) -> None:
        """Each group's scale, then each of its integers, to where the form is least."""
        matrix = self._form.matrix
        for group, block in self._blocks():
            begin = block.start
            slope = matrix[block] @ self._error
            inner = matrix[block, block]
            if begin == group * self._size and block.stop == begin + self._size:
                slope += inner @ self._rescale(group, block, slope)
            for column in range(begin, block.stop):
                i = column - begin
                before = self._error[column].clone()
                self._set(group, column, self._weight[column] - before + slope[i] / inner[i, i])
                slope += inner[:, i, None] * (self._error[column] - before)

    def _rescale(self, group: int, block: slice, slope: torch.Tensor) -> torch.Tensor:
        """Changes the scales of a group where it helps; returns by how much errors changed."""
        units = self._integers[block] - self._zero[group]
        curve = (units * (self._form.matrix[block, block] @ units)).sum(0)
        gain = (units * slope).sum(0)
        scale = self._scale[group]
        new = scale + gain / torch.where(curve > 0, curve, 1.0)
        stored = new if self._scheme.bits == 8 else new.half().float()
        change = stored - scale
        better = change * (change * curve - 2 * gain) < 0
        change = torch.where(better & change.isfinite(), change, 0.0)
        self._scale[group] += change
        self._error[block] -= change * units
        return -change * units

    def _set(self, group: int, column: int, wanted: torch.Tensor) -> None:
        """The integers of a column: those nearest to the `wanted` values [N]."""
        scale, zero = self._scale[group], self._zero[group]
        integers = self._integer(wanted, scale, zero)
        self._integers[column] = integers
        self._error[column] = self._weight[column] - self._value(integers, scale, zero)

    def _integer(
        self, wanted: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
    ) -> torch.Tensor:
        low, high = self._scheme.range
        units = (wanted / torch.where(scale == 0, 1.0, scale)).round_()
        return units.add_(zero).clamp_(low, high)

    def _value(
        self, integers: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
    ) -> torch.Tensor:
        return (integers - zero) * scale

    def _blocks(self) -> Iterator[tuple[int, slice]]:
        """(group, columns): a group at a time, large ones in several blocks."""
        for group in range(len(self._scale)):
            end = (group + 1) * self._size
            for begin in range(group * self._size, end, _BLOCK):
                yield group, slice(begin, min(begin + _BLOCK, end))
