"""The kernels of recurrences against gw.cached_scan: ragged batches that go on step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import Recurrence
from scan_steps import exponential, mamba, step_text, unsqueezed

from graphwright.backends.scans.body import Body
from graphwright.backends.scans.stages import Place, plan_stages
from graphwright.backends.tvm.kernels.scan import plan_scan, scan
from graphwright.backends.tvm.target import cpu_by_name, host_cpu
from graphwright.ir import BackendError
from graphwright.ir.op import Sample, get_op
from graphwright.ir.scan_step import ScanState, ScanStep

aten = torch.ops.aten
SAMPLES = {sample.name: sample for sample in get_op("cached_scan").samples()}
STEPS = ((1, 4, 0), (1, 1, 2), (0, 1, 1), (13, 0, 3), (1, 2, 1))


def rows_for(recurrence: Recurrence, tokens: int) -> list[torch.Tensor]:
    """Random rows of the shapes and types that a recurrence takes."""
    found = []
    for row in recurrence.rows:
        shape = (tokens, *row.shape[1:])
        if row.dtype is torch.bool:
            found.append(torch.rand(shape) < 0.3)
        elif row.dtype.is_floating_point:
            found.append(torch.randn(shape))
        else:
            found.append(torch.randint(0, 3, shape).to(row.dtype))
    return found


def run_ragged(recurrence: Recurrence) -> None:
    torch.manual_seed(0)
    for counts in STEPS:
        recurrence.step_over(counts, rows_for(recurrence, sum(counts)))
    recurrence.restart(1)  # must not see what its slot held
    for counts in ((1, 3, 1), (1, 1, 1)):
        recurrence.step_over(counts, rows_for(recurrence, sum(counts)))


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("cpu", ["host", "x86-64-v3"])
def test_samples(name: str, cpu: str) -> None:
    sample: Sample = SAMPLES[name]
    step, weights = sample.kwargs["step"], sample.args[1]
    for threads in (1, 2, 3):
        run_ragged(Recurrence(step, weights, threads, cpu=cpu_by_name(cpu)))
    run_ragged(Recurrence(step, weights, cpu=cpu_by_name(cpu), small_tiles=False))


@pytest.mark.parametrize("name", SAMPLES)
def test_one_prefill_equals_chunks_and_single_tokens(name: str) -> None:
    sample: Sample = SAMPLES[name]
    step, weights = sample.kwargs["step"], sample.args[1]
    whole, parts = (Recurrence(step, weights, slots=(1,)) for _ in range(2))
    rows = rows_for(whole, 23)
    want = whole.step_over((23,), rows)
    got, at = [], 0
    for count in (7, 1, 1, 11, 1, 2):
        got.append(parts.step_over((count,), [row[at : at + count] for row in rows]))
        at += count
    assert torch.equal(torch.cat(got), want)
    assert np.array_equal(whole.memory, parts.memory, equal_nan=True)


def test_the_number_of_threads_changes_nothing() -> None:
    sample: Sample = SAMPLES["delta-rule"]
    step, weights = sample.kwargs["step"], sample.args[1]
    one, many = (Recurrence(step, weights, threads) for threads in (1, 5))
    rows = rows_for(one, 9)
    assert torch.equal(one.step_over((4, 2, 3), rows), many.step_over((4, 2, 3), rows))


# ---- the kinds of recurrences that models have, in odd sizes


def test_channels_with_a_small_state_each() -> None:
    for channels, length in ((37, 5), (512, 16), (1, 3), (96, 1)):
        rows = [torch.randn(1, channels)] * 2 + [torch.randn(1, length)] * 2
        weights = [-torch.rand(channels, length), torch.randn(channels)]
        step = step_text(mamba, [ScanState((channels, length))], rows, weights)
        run_ragged(Recurrence(step, weights))
    tiles = plan_scan(step_text(
        mamba, [ScanState((512, 16))], [torch.randn(1, 512)] * 2 + [torch.randn(1, 16)] * 2,
        [torch.randn(512, 16), torch.randn(512)],
    ), host_cpu())  # fmt: skip
    assert tiles.count >= 8 and tiles.axes[0].size == 512


def grouped(s: Any, x: Any, dt: Any, b: Any, c: Any, a: Any) -> Any:
    """Heads that share b and c in groups, and results that are flat."""
    decay = aten.exp.default(aten.mul.Tensor(aten.softplus.default(dt), a))
    decay = aten.expand.default(unsqueezed(decay, 2, 3), [1, 6, 10, 7])
    b, c = (aten.repeat_interleave.self_int(each, 3, 1) for each in (b, c))
    new = aten.add.Tensor(
        aten.mul.Tensor(s, decay), aten.mul.Tensor(unsqueezed(x, 3), unsqueezed(b, 2))
    )
    y = aten.sum.dim_IntList(aten.mul.Tensor(new, unsqueezed(c, 2)), [3])
    return new, aten.reshape.default(aten.add.Tensor(y, x), [1, 60])


def test_heads_in_groups_and_flat_results() -> None:
    rows = [torch.randn(1, 6, 10), torch.randn(1, 6), torch.randn(1, 2, 7), torch.randn(1, 2, 7)]
    weights = [-torch.rand(6)]
    step = step_text(grouped, [ScanState((6, 10, 7))], rows, weights)
    recurrence = Recurrence(step, weights)
    assert {axis.size for axis in recurrence.tiles.axes} == {6, 10}
    run_ragged(recurrence)


def test_states_that_need_each_other() -> None:
    heads = [torch.randn(1, 3, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 40)]
    states = [ScanState((3, 8, 40)), ScanState((3, 8)), ScanState((3,), -30.0)]
    step = step_text(exponential, states, [*heads, torch.randn(1, 3), torch.randn(1, 3)])
    run_ragged(Recurrence(step, []))


def test_states_that_change_places() -> None:
    """Each is what the other was: one of them must be kept apart."""
    states = [ScanState((5, 3), 1.5), ScanState((5, 3), -2.0)]

    def swap(a: Any, b: Any, x: Any) -> Any:
        return b, aten.add.Tensor(a, x), aten.sub.Tensor(a, b)

    step = step_text(swap, states, [torch.randn(1, 5, 3)])
    assert len(plan_stages(Body.of(ScanStep.parse(step))).deferred) == 1
    run_ragged(Recurrence(step, []))


def test_a_state_that_is_turned_over() -> None:
    def turn(a: Any, x: Any) -> Any:
        new = aten.add.Tensor(aten.transpose.int(a, 1, 2), x)
        return new, aten.amax.default(a, [1])

    step = step_text(turn, [ScanState((9, 9))], [torch.randn(1, 9, 9)])
    stages = plan_stages(Body.of(ScanStep.parse(step)))
    assert stages.deferred == {0} and not plan_scan(step, host_cpu()).axes
    run_ragged(Recurrence(step, []))


def test_flags_that_reset_and_numbers_that_choose() -> None:
    def choose(s: Any, x: Any, reset: Any, which: Any, table: Any) -> Any:
        kept = aten.where.self(unsqueezed(reset, 1), aten.zeros_like.default(s), s)
        new = aten.add.Tensor(kept, aten.mul.Tensor(x, aten.embedding.default(table, which)))
        some = aten.logical_and.default(reset, aten.gt.Scalar(aten.sum.dim_IntList(new, [1]), 0))
        return new, aten.tanh.default(new), aten._to_copy.default(some, dtype=torch.float32)

    rows = [torch.randn(1, 21), torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)]
    table = torch.randn(3, 21)
    step = step_text(choose, [ScanState((21,))], rows, [table])
    run_ragged(Recurrence(step, [table]))


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

    for sizes in ((4, 35), (1, 8), (3, 1)):
        if sizes[1] > 1:
            step = step_text(reduce, [ScanState(sizes)], [torch.randn(1, *sizes)])
            run_ragged(Recurrence(step, []))


def test_costly_values_are_computed_once() -> None:
    """The decay of a row of a matrix is a value of its own, in vectors."""

    def decay(s: Any, k: Any, v: Any, g: Any) -> Any:
        kept = aten.exp.default(aten.neg.default(aten.softplus.default(g)))
        outer = aten.mul.Tensor(unsqueezed(k, 3), unsqueezed(v, 2))
        new = aten.add.Tensor(aten.mul.Tensor(s, unsqueezed(kept, 3)), outer)
        return new, aten.sum.dim_IntList(new, [2])

    rows = [torch.randn(1, 3, 24), torch.randn(1, 3, 32), torch.randn(1, 3, 24)]
    recurrence = Recurrence(step_text(decay, [ScanState((3, 24, 32))], rows), [])
    order = recurrence.tiles.stages.order
    kept = [stage.node.target for stage in order if stage.place.kind == "scratch"]
    assert kept == [aten.exp.default, aten.sum.dim_IntList]
    run_ragged(recurrence)


def test_windows_lie_channel_by_channel() -> None:
    """A vector of channels for each of the last inputs, and weights likewise."""
    sample = SAMPLES["window"]
    assert plan_scan(sample.kwargs["step"], host_cpu()).lanes is None  # too few channels

    def window(s: Any, x: Any, weight: Any) -> Any:
        joined = aten.cat.default([s, x], 2)
        total = aten.sum.dim_IntList(aten.mul.Tensor(joined, weight), [2])
        return aten.slice.Tensor(joined, 2, 1, 2**62), aten.silu.default(total)

    for channels, length in ((96, 3), (37, 1), (512, 7)):
        weight = torch.randn(channels, length + 1)
        step = step_text(window, [ScanState((channels, length))], [torch.randn(1, channels, 1)],
                         [weight])  # fmt: skip
        recurrence = Recurrence(step, [weight])
        if length > 1:
            assert list(recurrence.tiles.weights.values()) == [(1, 0)]
        run_ragged(recurrence)


def test_weights_lie_as_vectors_need_them() -> None:
    """The window lies channel by channel already, its weights do not."""

    def window(s: Any, x: Any, weight: Any) -> Any:
        joined = aten.cat.default([s, unsqueezed(x, 1)], 1)
        turned = aten.unsqueeze.default(aten.t.default(weight), 0)
        total = aten.sum.dim_IntList(aten.mul.Tensor(joined, turned), [1])
        return aten.slice.Tensor(joined, 1, 1, 2**62), total

    weight = torch.randn(40, 4)
    step = step_text(window, [ScanState((3, 40))], [torch.randn(1, 40)], [weight])
    recurrence = Recurrence(step, [weight])
    assert recurrence.tiles.lanes is None
    assert list(recurrence.tiles.weights.values()) == [(1, 0)]
    run_ragged(recurrence)


# ---- random graphs


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, list[torch.Tensor]]:
    """A step of one to three states of equal or smaller shapes, and its weights. tanh keeps the
    states bounded."""
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 8, 17, 32]), min_size=1, max_size=3)))
    count = draw(st.integers(1, 3))
    shapes = [sizes] + [
        tuple(n if draw(st.booleans()) else 1 for n in sizes) for _ in range(count - 1)
    ]
    states = [ScanState(shape, draw(st.sampled_from([0.0, 1.0, -0.5]))) for shape in shapes]
    row_shapes = [
        tuple(n if draw(st.booleans()) else 1 for n in sizes)
        for _ in range(draw(st.integers(1, 3)))
    ]
    rows = [torch.randn(1, *shape) for shape in row_shapes]
    weights = [torch.randn(sizes)] if draw(st.booleans()) else []

    def grown(pool: list[Any], shapes_of: list[tuple[int, ...]], depth: int) -> None:
        for _ in range(depth):
            number = draw(st.integers(0, len(pool) - 1))
            value, shape = pool[number], shapes_of[number]
            kind = draw(st.sampled_from(["add", "mul", "maximum", "one", "reduce", "move", "move"]))
            if kind in ("add", "mul", "maximum"):
                other = draw(st.integers(0, len(pool) - 1))
                target = getattr(aten, kind)
                target = target.default if kind == "maximum" else target.Tensor
                value = target(value, pool[other])
                shape = tuple(max(a, b) for a, b in zip(shape, shapes_of[other], strict=True))
            elif kind == "one":
                name = draw(st.sampled_from(["sigmoid", "neg", "exp", "sin"]))
                bounded = aten.tanh.default(value) if name == "exp" else value
                value = getattr(aten, name).default(bounded)
            elif kind == "reduce":
                axis = draw(st.integers(0, len(sizes) - 1))
                target = draw(st.sampled_from([aten.sum.dim_IntList, aten.amax.default]))
                value = target(value, [axis + 1], True)
                shape = tuple(1 if i == axis else n for i, n in enumerate(shape))
            else:
                axis = draw(st.integers(0, len(sizes) - 1))
                if draw(st.booleans()):
                    value = aten.flip.default(value, [axis + 1])
                elif shape[axis] > 1:  # turned by one
                    first = aten.slice.Tensor(value, axis + 1, 0, 1)
                    rest = aten.slice.Tensor(value, axis + 1, 1, 2**62)
                    value = aten.cat.default([rest, first], axis + 1)
            pool.append(value)
            shapes_of.append(shape)

    def run(*given: Any) -> tuple[Any, ...]:
        pool = list(given[:count]) + list(given[count : count + len(rows)])
        pool += [aten.unsqueeze.default(each, 0) for each in given[count + len(rows) :]]
        shapes_of = [*shapes, *row_shapes, *([sizes] if weights else [])]
        grown(pool, shapes_of, draw(st.integers(1, 8)))
        new = []
        for number, shape in enumerate(shapes):
            chosen, own = pool[-1 - number % len(pool)], shapes_of[-1 - number % len(pool)]
            axes = [i + 1 for i, (a, b) in enumerate(zip(own, shape, strict=True)) if b == 1 < a]
            chosen = aten.mean.dim(chosen, axes, True) if axes else chosen
            own_state = given[number]
            if draw(st.booleans()):
                own_state = aten.flip.default(own_state, [draw(st.integers(1, len(sizes)))])
            mixed = aten.add.Tensor(chosen, aten.mul.Tensor(own_state, 0.5))
            new.append(aten.tanh.default(mixed))
        if draw(st.booleans()):
            grown(pool := [*pool, *new], [*shapes_of, *shapes], 2)
        result = aten.reshape.default(pool[-1], [1, -1])
        return (*new, result, pool[draw(st.integers(0, len(pool) - 1))])

    return step_text(run, states, rows, weights), weights


@settings(max_examples=60, deadline=None)
@given(steps(), st.sampled_from(["host", "x86-64-v3"]))
def test_random_recurrences(drawn: tuple[str, list[torch.Tensor]], cpu: str) -> None:
    step, weights = drawn
    run_ragged(Recurrence(step, weights, cpu=cpu_by_name(cpu)))


# ---- refusals


def test_what_cannot_be_computed_is_named() -> None:
    def body(s: Any, x: Any) -> Any:
        return aten.cumsum.default(aten.add.Tensor(s, x), 1), s

    step = step_text(body, [ScanState((8,))], [torch.randn(1, 8)])
    with pytest.raises(BackendError, match="cumsum"):
        scan(step, [8], slot_stride=8, cpu=host_cpu())


def test_a_state_that_would_not_fit_on_the_stack_is_refused() -> None:
    def turn(s: Any, x: Any) -> Any:
        return aten.add.Tensor(aten.transpose.int(s, 1, 2), unsqueezed(x, 2)), x

    step = step_text(turn, [ScanState((512, 512))], [torch.randn(1, 512)])
    with pytest.raises(BackendError, match="needs 1048576 bytes beside its states"):
        scan(step, [512], slot_stride=512 * 512, cpu=host_cpu())


def test_axes_that_depend_on_each_other_are_not_cut() -> None:
    step = SAMPLES["delta-rule"].kwargs["step"]
    tiles = plan_scan(step, cpu_by_name("x86-64-v4"))
    first = Place("state", 0)
    assert {axis.dims[first] for axis in tiles.axes} <= {0, 2}  # not that of the keys
