"""Recurrences, in Triton's interpreter, against their op: sequences that go on, start and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings

from graphwright.ir.errors import BackendError
from graphwright.ir.op import Sample, get_op
from graphwright.ir.scan_step import ScanState, ScanStep
from graphwright.ir.tolerance import check_close

triton = pytest.importorskip("triton")

from scan_steps import (  # noqa: E402
    delta_rule,
    exponential,
    last_values,
    linear_unit,
    mamba,
    mamba2,
    step_text,
    unsqueezed,
)
from test_tvm_scan import grouped, steps  # noqa: E402
from triton_harness import batch_header, call, untouched  # noqa: E402

from graphwright.backends.triton.scans.layout import LARGEST  # noqa: E402
from graphwright.backends.triton.scans.scan import scan  # noqa: E402

aten = torch.ops.aten
SAMPLES = {sample.name: sample for sample in get_op("cached_scan").samples()}
GAP = 3  # elements between rows
GUARD = 5  # elements behind the states of a slot
STEPS = ((1, 4, 0), (3, 1, 2), (1, 1, 1))  # tokens of each sequence
BF16 = torch.bfloat16


@dataclass
class Recurrence:
    """One recurrence by its kernel and by its op; what nobody has written is NaN. dtype: of float
    rows and results. slots: of each sequence, which start at position 0."""

    step: str
    weights: Sequence[torch.Tensor] = ()
    dtype: torch.dtype = torch.float32
    slots: tuple[int, ...] = (2, 0, 3)

    def __post_init__(self) -> None:
        self.parsed = ScanStep.parse(self.step)
        self.stride = self.parsed.state_size + GUARD
        self.memory = torch.full((max(self.slots) + 2, self.stride), torch.nan)
        self.state = torch.full((len(self.memory), self.parsed.state_size), torch.nan)
        self.lengths = [0] * len(self.slots)
        given = self.parsed.placeholders[len(self.parsed.states) :]
        self.shapes = [node.meta["val"] for node in given[: self.parsed.rows]]
        dtypes = [_name(self._stored(value.dtype)) for value in self.shapes]
        dtypes += [_name(_stored_weight(weight).dtype) for weight in self.weights]
        self.made = scan(
            self.step, tuple(value.numel() + GAP for value in self.shapes), tuple(dtypes),
            slot_stride=self.stride, out=_name(self.dtype),
        )  # fmt: skip

    def check(self) -> None:
        """Ragged steps, and a sequence that starts anew in the slot as it is."""
        torch.manual_seed(0)
        for counts in STEPS:
            self.step_over(counts)
        self.lengths[1] = 0
        for counts in ((1, 3, 1), (1, 1, 1)):
            self.step_over(counts)

    def step_over(self, counts: Sequence[int], rows: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Appends tokens to the sequences; compares results and states."""
        tokens = sum(counts)
        rows = list(rows) or [self._row(tokens, value) for value in self.shapes]
        places = [range(at, at + n) for at, n in zip(self.lengths, counts, strict=True)]
        positions = torch.tensor([each for one in places for each in one])
        start = torch.tensor([0, *counts]).cumsum(0).int()
        table = torch.tensor([[slot, 9] for slot in self.slots], dtype=torch.int32)
        wide = [row.float() if row.dtype.is_floating_point else row for row in rows]
        want = get_op("cached_scan").reference(
            wide, self.weights, self.state, positions, start, table, step=self.step
        )
        spread = []
        for row in rows:
            own = row.to(self._stored(row.dtype)).reshape(tokens, -1)
            spread.append(untouched((tokens, own.shape[1] + GAP), own.dtype))
            spread[-1][:, : own.shape[1]] = own
        out = untouched((tokens + 1, self.parsed.result_size), self.dtype)
        count = len(self.slots)
        batch = batch_header(tokens, count, 2, count)
        # Slot 0 lies last, that of number r so many strides before.
        slots = self.memory.flatten()[(len(self.memory) - 1) * self.stride :]
        weights = [_stored_weight(weight) for weight in self.weights]
        call(self.made.kernel, batch, *spread, *weights, slots, positions, start, table, out)
        check_close(out[:tokens], want.to(self.dtype))
        assert out[tokens].isnan().all()
        self.lengths = [at + n for at, n in zip(self.lengths, counts, strict=True)]
        held = self.memory.flip(0)
        assert held[:, self.parsed.state_size :].isnan().all()
        for slot, state in enumerate(self.state):
            got = held[slot, : self.parsed.state_size]
            if state.isnan().all():
                assert got.isnan().all(), f"slot {slot} is written"
            else:
                check_close(got, state)
        return out[:tokens]

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        if dtype is torch.bool:
            return torch.int8
        return self.dtype if dtype.is_floating_point else dtype

    def _row(self, tokens: int, like: torch.Tensor) -> torch.Tensor:
        shape = (tokens, *like.shape[1:])
        if like.dtype is torch.bool:
            return torch.rand(shape) < 0.3
        if like.dtype.is_floating_point:
            return torch.randn(shape).to(self.dtype)
        return torch.randint(0, 3, shape).to(like.dtype)


def _stored_weight(weight: torch.Tensor) -> torch.Tensor:
    return (weight.to(torch.int8) if weight.dtype is torch.bool else weight).contiguous()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name: str, dtype: torch.dtype) -> None:
    sample: Sample = SAMPLES[name]
    Recurrence(sample.kwargs["step"], sample.args[1], dtype).check()


def mamba_of(channels: int, length: int) -> tuple[str, list[torch.Tensor]]:
    rows = [torch.randn(1, channels)] * 2 + [torch.randn(1, length)] * 2
    weights = [-torch.rand(channels, length), torch.randn(channels)]
    return step_text(mamba, [ScanState((channels, length))], rows, weights), weights


@pytest.mark.parametrize("channels, length", [(37, 5), (130, 16), (1, 3), (96, 1)])
def test_channels_with_a_small_state_each(channels: int, length: int) -> None:
    Recurrence(*mamba_of(channels, length)).check()


def test_heads_in_groups_and_flat_results() -> None:
    rows = [torch.randn(1, 6, 10), torch.randn(1, 6), torch.randn(1, 2, 7), torch.randn(1, 2, 7)]
    weights = [-torch.rand(6)]
    recurrence = Recurrence(step_text(grouped, [ScanState((6, 10, 7))], rows, weights), weights)
    assert {axis.size for axis in recurrence.made.layout.axes if axis.cut} == {6, 10}
    recurrence.check()


def test_states_that_need_each_other() -> None:
    heads = [torch.randn(1, 3, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 40)]
    states = [ScanState((3, 8, 40)), ScanState((3, 8)), ScanState((3,), -30.0)]
    gates = [torch.randn(1, 3), torch.randn(1, 3)]
    Recurrence(step_text(exponential, states, [*heads, *gates])).check()


def test_states_that_change_places() -> None:
    states = [ScanState((5, 3), 1.5), ScanState((5, 3), -2.0)]

    def swap(a: Any, b: Any, x: Any) -> Any:
        return b, aten.add.Tensor(a, x), aten.sub.Tensor(a, b)

    Recurrence(step_text(swap, states, [torch.randn(1, 5, 3)])).check()


def test_a_state_that_is_turned_over() -> None:
    def turn(a: Any, x: Any) -> Any:
        new = aten.add.Tensor(aten.transpose.int(a, 1, 2), x)
        return new, aten.amax.default(a, [1])

    recurrence = Recurrence(step_text(turn, [ScanState((9, 9))], [torch.randn(1, 9, 9)]))
    assert not any(axis.cut for axis in recurrence.made.layout.axes)
    assert "tl.gather" in recurrence.made.source
    recurrence.check()


def test_sums_of_several_warps() -> None:
    """Keys, too long for one, that cannot be cut."""
    recurrence = Recurrence(delta_rule(1, 600, 5), slots=(2, 1))
    assert recurrence.made.kernel.num_warps == 8
    recurrence.step_over((2, 1))
    recurrence.step_over((1, 1))


def test_the_kinds_of_models() -> None:
    """Mamba-2 and the RG-LRU in small, and windows whose values change places."""
    Recurrence(linear_unit(150), [torch.randn(150)]).check()
    Recurrence(mamba2(4, 6, 9, 2), [-torch.rand(4), torch.randn(4)]).check()
    for channels, length in ((13, 3), (5, 11)):
        Recurrence(last_values(channels, length), [torch.randn(channels, length)]).check()


def test_flags_that_reset_and_numbers_that_choose() -> None:
    def choose(s: Any, x: Any, reset: Any, which: Any, table: Any) -> Any:
        kept = aten.where.self(unsqueezed(reset, 1), aten.zeros_like.default(s), s)
        new = aten.add.Tensor(kept, aten.mul.Tensor(x, aten.embedding.default(table, which)))
        some = aten.logical_and.default(reset, aten.gt.Scalar(aten.sum.dim_IntList(new, [1]), 0))
        return new, aten.tanh.default(new), aten._to_copy.default(some, dtype=torch.float32)

    rows = [torch.randn(1, 21), torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)]
    table = torch.randn(3, 21)
    Recurrence(step_text(choose, [ScanState((21,))], rows, [table]), [table]).check()


def test_reductions_of_all_kinds() -> None:
    def reduce(s: Any, x: Any) -> Any:
        new = aten.tanh.default(aten.add.Tensor(aten.mul.Tensor(s, 0.9), x))
        chosen = aten._softmax.default(new, 2, False)
        parts = [
            aten.mean.dim(new, [2]), aten.amin.default(new, [2]),
            aten.var.correction(new, [2], correction=1),
            aten.linalg_vector_norm.default(new, 2, [2]),
            aten.sum.dim_IntList(aten.mul.Tensor(chosen, x), [2]),
        ]  # fmt: skip
        return new, aten.cat.default(parts, 1), aten.sum.dim_IntList(new, [1, 2])

    for sizes in ((4, 35), (1, 8)):
        Recurrence(step_text(reduce, [ScanState(sizes)], [torch.randn(1, *sizes)])).check()


@settings(max_examples=25, deadline=None)
@given(steps())
def test_random_recurrences(drawn: tuple[str, list[torch.Tensor]]) -> None:
    try:
        recurrence = Recurrence(*drawn)
    except BackendError as error:
        assume("elements of" not in str(error))  # refused for its size
        raise
    recurrence.check()


def test_one_prefill_equals_chunks_and_single_tokens() -> None:
    step = SAMPLES["delta-rule"].kwargs["step"]
    whole, parts = (Recurrence(step, slots=(1,)) for _ in range(2))
    rows = [whole._row(13, value) for value in whole.shapes]
    want = whole.step_over((13,), rows)
    got, at = [], 0
    for count in (7, 1, 1, 4):
        got.append(parts.step_over((count,), [row[at : at + count] for row in rows]))
        at += count
    assert torch.equal(torch.cat(got), want)
    assert torch.equal(whole.memory.nan_to_num(7.5), parts.memory.nan_to_num(7.5))


def test_what_cannot_be_computed_is_named() -> None:
    def body(s: Any, x: Any) -> Any:
        return aten.cumsum.default(aten.add.Tensor(s, x), 1), s

    step = step_text(body, [ScanState((8,))], [torch.randn(1, 8)])
    with pytest.raises(BackendError, match="cumsum"):
        scan(step, (8,), ("float32",), slot_stride=8)


def test_what_no_program_can_hold_is_refused() -> None:
    def turn(s: Any, x: Any) -> Any:
        return aten.add.Tensor(aten.transpose.int(s, 1, 2), unsqueezed(x, 2)), x

    step = step_text(turn, [ScanState((512, 512))], [torch.randn(1, 512)])
    with pytest.raises(BackendError, match=rf"262144 elements of 'add.*512, 512.*and {LARGEST}"):
        scan(step, (512,), ("float32",), slot_stride=512 * 512)
