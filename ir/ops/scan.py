"""Recurrences along tokens: stateless, and with a state per sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch

from graphwright.ir.op import Sample, declare
from graphwright.ir.scan_step import ScanState, ScanStep

__all__ = ["cached_scan", "scan_along_tokens"]

aten = torch.ops.aten


def _meta(
    rows: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], *_: Any, step: str
) -> torch.Tensor:
    size = ScanStep.parse(step).result_size
    return rows[0].new_empty((rows[0].shape[0], size), dtype=torch.float32)


def _running_sum(state: Any, x: Any) -> Any:
    new = aten.add.Tensor(state, x)
    return new, new


def _decayed_sum(state: Any, x: Any, decay: Any) -> Any:
    """s = decay * s + x for each channel; y = s."""
    new = aten.add.Tensor(aten.mul.Tensor(state, decay), x)
    return new, new


def _outer_products(state: Any, q: Any, k: Any, v: Any, gate: Any) -> Any:
    """S [H, K, V] = gate * S + k v' and y = q S: linear attention with a decay for each head."""
    kept = aten.mul.Tensor(state, aten.unsqueeze.default(aten.unsqueeze.default(gate, -1), -1))
    outer = aten.mul.Tensor(aten.unsqueeze.default(k, 3), aten.unsqueeze.default(v, 2))
    new = aten.add.Tensor(kept, outer)
    return new, aten.sum.dim_IntList(aten.mul.Tensor(new, aten.unsqueeze.default(q, 3)), [2])


def _delta_rule(state: Any, q: Any, k: Any, v: Any, gate: Any, beta: Any) -> Any:
    """What k recalls is replaced by v: reads the old state before it writes the new one."""
    kept = aten.mul.Tensor(state, aten.unsqueeze.default(aten.unsqueeze.default(gate, -1), -1))
    key = aten.unsqueeze.default(k, 3)
    recalled = aten.sum.dim_IntList(aten.mul.Tensor(kept, key), [2])
    change = aten.mul.Tensor(aten.sub.Tensor(v, recalled), aten.unsqueeze.default(beta, 2))
    new = aten.add.Tensor(kept, aten.mul.Tensor(key, aten.unsqueeze.default(change, 2)))
    return new, aten.sum.dim_IntList(aten.mul.Tensor(new, aten.unsqueeze.default(q, 3)), [2])


def _last_values(state: Any, x: Any, weight: Any) -> Any:
    """A window [C, L] of the last L values of each channel, weighed."""
    joined = aten.cat.default([state, aten.unsqueeze.default(x, 2)], 2)
    new = aten.slice.Tensor(joined, 2, 1, 2**62)
    return new, aten.sum.dim_IntList(aten.mul.Tensor(new, weight), [2])


def _running_maximum(top: Any, total: Any, x: Any) -> Any:
    """Two states that need each other: a sum of exponentials and what it is scaled by."""
    new_top = aten.maximum.default(top, x)
    old = aten.mul.Tensor(total, aten.exp.default(aten.sub.Tensor(top, new_top)))
    new_total = aten.add.Tensor(old, aten.exp.default(aten.sub.Tensor(x, new_top)))
    return new_top, new_total, aten.add.Tensor(aten.log.default(new_total), new_top)


def _cases(tokens: int) -> Iterator[tuple[str, list[torch.Tensor], list[torch.Tensor], str]]:
    """(name, rows, weights, step): recurrences of the kinds that models have."""

    def row(*sizes: int) -> torch.Tensor:
        return torch.randn(tokens, *sizes)

    def case(
        name: str, run: Any, states: Sequence[ScanState], rows: list[torch.Tensor],
        weights: Sequence[torch.Tensor] = (),
    ) -> tuple[str, list[torch.Tensor], list[torch.Tensor], str]:  # fmt: skip
        return (
            name,
            rows,
            list(weights),
            ScanStep.of(run, states, [each[:1] for each in rows], weights).text(),
        )

    yield case("count", _running_sum, [ScanState((1,))], [(row(1) > 0).float()])
    yield case("channels", _decayed_sum, [ScanState((37,))], [row(37), row(37).sigmoid()])
    heads = [row(3, 8), row(3, 8), row(3, 20)]
    yield case(
        "outer-products", _outer_products, [ScanState((3, 8, 20))], [*heads, row(3).sigmoid()]
    )
    gates = [row(3).sigmoid(), row(3).sigmoid()]
    yield case("delta-rule", _delta_rule, [ScanState((3, 8, 20))], [*heads, *gates])
    yield case("window", _last_values, [ScanState((11, 4))], [row(11)], [torch.randn(11, 4)])
    pair = [ScanState((9,), -1e30), ScanState((9,))]
    yield case("two-states", _running_maximum, pair, [row(9)])


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for name, rows, weights, step in _cases(6):
        yield Sample((rows, weights), {"step": step}, name)


@declare(
    "scan_along_tokens(Tensor[] rows, Tensor[] weights, *, str step) -> Tensor",
    meta=_meta,
    samples=_samples,
)
def scan_along_tokens(
    rows: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], *, step: str
) -> torch.Tensor:
    """A recurrence over the tokens of one sequence, from its first on.

    step: the text of an ir.scan_step.ScanStep. rows: at least one, each [T, ...] as its placeholder
    is for one token; weights as theirs. Returns float32 [T, F]: the results of each token, flat,
    one behind the other.
    """
    parsed = ScanStep.parse(step)
    return parsed.run(parsed.initial(), rows, weights)[1]


def _cached_samples() -> Iterator[Sample]:
    torch.manual_seed(1)
    table = torch.tensor([[3, 8], [2, 5], [1, 6], [4, 7]], dtype=torch.int32)
    # Sequence 0 decodes its 10th token, 1 starts with 4, 2 adds 2 to its 3, 3 decodes its 2nd.
    positions = torch.tensor([9, 0, 1, 2, 3, 3, 4, 1])
    start = torch.tensor([0, 1, 5, 7, 8], dtype=torch.int32)
    for name, rows, weights, step in _cases(len(positions)):
        state = torch.randn(5, ScanStep.parse(step).state_size).abs()
        yield Sample((rows, weights, state, positions, start, table), {"step": step}, name)


@declare(
    "cached_scan(Tensor[] rows, Tensor[] weights, Tensor(a!) state, Tensor positions, "
    "Tensor query_start, Tensor block_table, *, str step) -> Tensor",
    meta=_meta,
    samples=_cached_samples,
)
def cached_scan(
    rows: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    state: torch.Tensor,
    positions: torch.Tensor,
    query_start: torch.Tensor,
    block_table: torch.Tensor,
    *,
    step: str,
) -> torch.Tensor:
    """gw.scan_along_tokens over a ragged batch whose sequences go on from earlier steps.

    positions, query_start and block_table as in gw.cached_attention. state [slots, S] is modified:
    row block_table[b, 0] holds the states of sequence b, flat, one behind the other. What it held
    before the sequence's position 0 is not read. Returns float32 [T, F].
    """
    parsed = ScanStep.parse(step)
    result = rows[0].new_empty((rows[0].shape[0], parsed.result_size), dtype=torch.float32)
    for b, (begin, end) in enumerate(pairwise(query_start.tolist())):
        if begin == end:
            continue
        slot = int(block_table[b, 0])
        old = parsed.initial() if int(positions[begin]) == 0 else state[slot].clone()
        new, result[begin:end] = parsed.run(old, [row[begin:end] for row in rows], weights)
        state[slot] = new
    return result
