"""One token of the recurrences that models have, in any sizes, as texts of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from graphwright.ir.scan_step import ScanState, ScanStep

__all__ = [
    "delta_rule", "exponential", "last_values", "linear_unit", "mamba", "mamba2", "mamba_step",
    "mlstm", "step_text", "unsqueezed",
]  # fmt: skip

aten = torch.ops.aten


def step_text(
    run: Callable[..., tuple[Any, ...]], states: Sequence[ScanState],
    rows: Sequence[torch.Tensor], weights: Sequence[torch.Tensor] = (),
) -> str:  # fmt: skip
    """The step whose graph is `run` of states, rows (each [1, ...]) and weights; it returns the new
    states, then results."""
    return ScanStep.of(run, states, rows, weights).text()


def unsqueezed(value: Any, *axes: int) -> Any:
    for axis in axes:
        value = aten.unsqueeze.default(value, axis)
    return value


def row(*sizes: int) -> torch.Tensor:
    return torch.zeros(1, *sizes)


def mamba(s: Any, dt: Any, x: Any, b: Any, c: Any, a: Any, d: Any) -> Any:
    decay = aten.exp.default(aten.mul.Tensor(unsqueezed(dt, 2), a))
    added = aten.mul.Tensor(unsqueezed(aten.mul.Tensor(dt, x), 2), unsqueezed(b, 1))
    new = aten.add.Tensor(aten.mul.Tensor(s, decay), added)
    y = aten.sum.dim_IntList(aten.mul.Tensor(new, unsqueezed(c, 1)), [2])
    return new, aten.add.Tensor(y, aten.mul.Tensor(x, d))


def mamba_step(channels: int, length: int) -> str:
    rows = [row(channels), row(channels), row(length), row(length)]
    weights = [torch.zeros(channels, length), torch.zeros(channels)]
    return step_text(mamba, [ScanState((channels, length))], rows, weights)


def delta_rule(heads: int, keys: int, values: int) -> str:
    """The gated delta rule: S = e^g S, and what k recalls of it moves towards v."""

    def run(s: Any, q: Any, k: Any, v: Any, g: Any, beta: Any) -> Any:
        kept = aten.mul.Tensor(s, unsqueezed(aten.exp.default(g), 2, 3))
        recalled = aten.sum.dim_IntList(aten.mul.Tensor(kept, unsqueezed(k, 3)), [2])
        change = aten.mul.Tensor(aten.sub.Tensor(v, recalled), unsqueezed(beta, 2))
        new = aten.add.Tensor(kept, aten.mul.Tensor(unsqueezed(k, 3), unsqueezed(change, 2)))
        return new, aten.sum.dim_IntList(aten.mul.Tensor(new, unsqueezed(q, 3)), [2])

    rows = [row(heads, keys), row(heads, keys), row(heads, values), row(heads), row(heads)]
    return step_text(run, [ScanState((heads, keys, values))], rows)


def mamba2(heads: int, channels: int, length: int, groups: int) -> str:
    """Heads that share b and c in groups; dt passes a softplus."""

    def run(s: Any, x: Any, dt: Any, b: Any, c: Any, a: Any, d: Any) -> Any:
        step = aten.softplus.default(dt)
        decay = unsqueezed(aten.exp.default(aten.mul.Tensor(step, a)), 2, 3)
        b, c = (
            aten.repeat_interleave.self_int(each, heads // groups, 1, output_size=heads)
            for each in (b, c)
        )
        added = aten.mul.Tensor(
            unsqueezed(aten.mul.Tensor(x, unsqueezed(step, 2)), 3), unsqueezed(b, 2)
        )
        new = aten.add.Tensor(aten.mul.Tensor(s, decay), added)
        y = aten.sum.dim_IntList(aten.mul.Tensor(new, unsqueezed(c, 2)), [3])
        y = aten.add.Tensor(y, aten.mul.Tensor(x, unsqueezed(d, 1)))
        return new, aten.reshape.default(y, [1, heads * channels])

    rows = [row(heads, channels), row(heads), row(groups, length), row(groups, length)]
    weights = [torch.zeros(heads), torch.zeros(heads)]
    return step_text(run, [ScanState((heads, channels, length))], rows, weights)


def exponential(c: Any, n: Any, m: Any, q: Any, k: Any, v: Any, i: Any, f: Any) -> Any:
    """mLSTM: a matrix, a vector and the largest exponent so far of each head."""
    forget = aten.neg.default(aten.softplus.default(aten.neg.default(f)))
    top = aten.maximum.default(aten.add.Tensor(forget, m), i)
    keep = aten.exp.default(aten.sub.Tensor(aten.add.Tensor(forget, m), top))
    take = aten.exp.default(aten.sub.Tensor(i, top))
    outer = aten.mul.Tensor(unsqueezed(k, 3), unsqueezed(v, 2))
    new_c = aten.add.Tensor(
        aten.mul.Tensor(c, unsqueezed(keep, 2, 3)), aten.mul.Tensor(outer, unsqueezed(take, 2, 3))
    )
    new_n = aten.add.Tensor(
        aten.mul.Tensor(n, unsqueezed(keep, 2)), aten.mul.Tensor(k, unsqueezed(take, 2))
    )
    y = aten.sum.dim_IntList(aten.mul.Tensor(new_c, unsqueezed(q, 3)), [2])
    norm = aten.abs.default(aten.sum.dim_IntList(aten.mul.Tensor(new_n, q), [2]))
    norm = aten.maximum.default(norm, aten.exp.default(aten.neg.default(top)))
    return new_c, new_n, top, aten.div.Tensor(y, unsqueezed(norm, 2))


def mlstm(heads: int, keys: int, values: int) -> str:
    states = [
        ScanState((heads, keys, values)),
        ScanState((heads, keys)),
        ScanState((heads,), -30.0),
    ]
    rows = [row(heads, keys), row(heads, keys), row(heads, values), row(heads), row(heads)]
    return step_text(exponential, states, rows)


def last_values(channels: int, length: int) -> str:
    """A window of the last values of each channel, weighed, and silu."""

    def run(s: Any, x: Any, weight: Any) -> Any:
        new = aten.slice.Tensor(aten.cat.default([s, unsqueezed(x, 2)], 2), 2, 1, 2**62)
        return new, aten.silu.default(aten.sum.dim_IntList(aten.mul.Tensor(new, weight), [2]))

    state = ScanState((channels, length))
    return step_text(run, [state], [row(channels)], [torch.zeros(channels, length)])


def linear_unit(channels: int) -> str:
    """RG-LRU: h = a h + sqrt(1 - a²) x, a = e^(-8 softplus(weight) sigmoid(gate))."""

    def run(h: Any, x: Any, gate: Any, weight: Any) -> Any:
        power = aten.mul.Tensor(
            aten.mul.Tensor(aten.sigmoid.default(gate), aten.softplus.default(weight)), -8.0
        )
        a = aten.exp.default(power)
        rest = aten.sqrt.default(aten.rsub.Scalar(aten.mul.Tensor(a, a), 1))
        new = aten.add.Tensor(aten.mul.Tensor(a, h), aten.mul.Tensor(rest, x))
        return new, new

    rows = [row(channels), row(channels)]
    return step_text(run, [ScanState((channels,))], rows, [torch.zeros(channels)])
