"""The kernels that work row by row, in Triton's interpreter, against their ops."""

from __future__ import annotations

import pytest
import torch
from drawn_tokens import chosen_token
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.ir.activations import ACTIVATIONS
from graphwright.ir.op import get_op
from graphwright.ir.schemes import quantize_weight
from graphwright.ir.tolerance import check_close
from graphwright.runtime.draws import LARGEST, draw_rule, random_word
from graphwright.runtime.sampling_params import SamplingParams

triton = pytest.importorskip("triton")

from triton_harness import batch_header, call, untouched  # noqa: E402

from graphwright.backends.triton.kernels.argmax import argmax, argmax_scratch  # noqa: E402
from graphwright.backends.triton.kernels.draw import draw, draw_scratch  # noqa: E402
from graphwright.backends.triton.kernels.embedding import (  # noqa: E402
    embedding,
    quantized_embedding,
)
from graphwright.backends.triton.kernels.gated_act import gated_act  # noqa: E402
from graphwright.backends.triton.kernels.norms import norm  # noqa: E402
from graphwright.backends.triton.kernels.select_rows import select_rows  # noqa: E402
from graphwright.backends.triton.kernels.take_inputs import take_inputs  # noqa: E402
from graphwright.backends.triton.kernels.token_slots import token_slots  # noqa: E402
from graphwright.backends.triton.kernels.top_k import top_k  # noqa: E402
from graphwright.backends.triton.kernels.weight_format import pack_nibbles  # noqa: E402
from graphwright.backends.triton.kernels.weighted_sum import weighted_sum  # noqa: E402

FEW = settings(max_examples=6, deadline=None)
ROWS = st.integers(1, 33)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def padded(x: torch.Tensor, padding: int) -> torch.Tensor:
    """Rows of x with NaN between them."""
    rows = x.reshape(len(x), -1)
    wide = torch.full((len(x), rows.shape[1] + padding), torch.nan, dtype=x.dtype)
    wide[:, : rows.shape[1]] = rows
    return wide


@FEW
@given(ROWS, st.sampled_from([(1, 40), (3, 16), (5, 72), (1, 1100)]), DTYPES, st.booleans(),
       st.booleans(), st.booleans())  # fmt: skip
def test_norms_are_their_ops(
    rows: int, shape: tuple[int, int], dtype: torch.dtype, layer: bool, adds: bool, affine: bool
) -> None:
    groups, width = shape
    torch.manual_seed(rows)
    kind = "layer_norm" if layer else "rms_norm"
    x, residual = (torch.randn(rows, groups, width).to(dtype) for _ in range(2))
    weight, bias = torch.randn(width).to(dtype), torch.randn(width)
    kernel = norm(
        kind, width, x_stride=groups * width + 3, residual_stride=groups * width if adds else None,
        weight=name_of(dtype) if affine else None, bias="float32" if affine and layer else None,
        eps=1e-5, groups=groups, dtype=name_of(dtype),
    )  # fmt: skip
    total, out = (untouched((rows + 1, groups, width), dtype) for _ in range(2))
    tensors = [batch_header(rows), padded(x, 3)] + [residual] * adds
    tensors += [weight] * affine + [bias] * (affine and layer) + [total] * adds + [out]
    call(kernel, *tensors)
    extra = [weight if affine else None] + [bias if affine else None] * layer
    want = get_op("add_" * adds + kind).reference(x, *[residual] * adds, *extra, eps=1e-5)
    if adds:
        check_close(total[:rows], want[0], "exact")
    check_close(out[:rows], want[1] if adds else want)
    assert out[rows].isnan().all()


def test_a_sum_may_be_of_a_normed_row() -> None:
    x, residual, before, weight = (torch.randn(size) for size in ((3, 72), (3, 72), 72, 72))
    kernel = norm("rms_norm", 72, x_stride=72, residual_stride=72, before="float32",
                  before_eps=1e-2, weight="float32", eps=1e-5)  # fmt: skip
    total, out = untouched((4, 72)), untouched((4, 72))
    call(kernel, batch_header(3), x, residual, before, weight, total, out)
    normed = get_op("rms_norm").reference(residual, before, eps=1e-2)
    want = get_op("add_rms_norm").reference(x, normed, weight, eps=1e-5)
    check_close(total[:3], want[0])
    check_close(out[:3], want[1])
    assert total[3].isnan().all() and out[3].isnan().all()


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_gated_activations_are_their_op(activation: str) -> None:
    merged = torch.randn(5, 2 * 1030) * 4
    merged[0, :5] = torch.tensor([-100.0, 100.0, 0.0, 1e-6, -30.0])
    gate, up = merged.split(1030, dim=1)
    out = untouched((6, 1030))
    kernel = gated_act(1030, gate_stride=2060, up_stride=2060, activation=activation)
    flat = merged.flatten()
    call(kernel, batch_header(5), flat, flat[1030:], out)
    check_close(out[:5], get_op("gated_act").reference(gate, up, activation=activation))
    assert out[5].isnan().all()


@pytest.mark.parametrize("scheme", [None, "w8", "w8g32", "w4g32", "w4g64z"])
def test_embeddings_are_their_ops(scheme: str | None) -> None:
    table, ids = torch.randn(11, 1088), torch.tensor([3, 0, 10])
    out = untouched((4, 1088))
    if scheme is None:
        call(embedding(1088, weight="float32"), batch_header(3), table, ids, out)
        want = get_op("embedding").reference(table, ids)
    else:
        weight, scale, *zero = quantize_weight(table, scheme)
        packed = pack_nibbles(weight, scheme) if scheme.startswith("w4") else weight
        kernel = quantized_embedding(1088, scheme)
        call(kernel, batch_header(3), packed, scale, *zero, ids, out)
        reference = get_op("quantized_embedding").reference
        want = reference(weight, scale, ids, *zero, scheme=scheme)
    check_close(out[:3], want, "exact")
    assert out[3].isnan().all()


def test_a_table_in_bfloat16_gives_rows_in_float32() -> None:
    table, out = torch.randn(5, 24).bfloat16(), untouched((2, 24))
    call(embedding(24, weight="bfloat16"), batch_header(2), table, torch.tensor([4, 1]), out)
    assert torch.equal(out, table[[4, 1]].float())


def test_selected_rows_are_copied_for_sampled_rows_only() -> None:
    x, rows = torch.randn(6, 1100), torch.tensor([5, 2], dtype=torch.int32)
    out = untouched((3, 1100))
    kernel = select_rows(1100, x_stride=1103)
    call(kernel, batch_header(6, rows=2), padded(x, 3), rows, out)
    assert torch.equal(out[:2], x[[5, 2]])
    assert out[2].isnan().all()


@FEW
@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from([17, 48, 1030]), DTYPES)
def test_weighted_sums_are_their_op(rows: int, slots: int, n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    y, weights = torch.randn(rows, slots, n).to(dtype), torch.rand(rows, slots)
    out = untouched((rows, n), dtype)
    kernel = weighted_sum(
        slots, n, y_stride=slots * n + 5, weights_stride=slots, dtype=name_of(dtype)
    )
    call(kernel, batch_header(rows), padded(y, 5), weights, out)
    check_close(out, get_op("weighted_sum").reference(y, weights))


@FEW
@given(st.integers(1, 7), st.integers(1, 70), st.data())
def test_the_largest_come_in_order_and_ties_by_index(
    rows: int, width: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, min(width, 6)))
    special = [float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1.0, -1.0]
    values = st.sampled_from(special)
    x = torch.tensor([[data.draw(values) for _ in range(width)] for _ in range(rows)])
    found, indices = untouched((rows, k)), untouched((rows, k), torch.int64)
    call(top_k(width, k, x_stride=width), batch_header(rows), x, found, indices)
    want, places = get_op("top_k").reference(x, k=k)
    assert torch.equal(indices, places)
    assert torch.equal(found.nan_to_num(7.5), want.nan_to_num(7.5))


def test_the_best_token_is_the_lowest_of_equals_and_nan_is_noticed() -> None:
    width = 9000
    logits = torch.randn(5, width)
    logits[0, [8500, 4097, 4100]] = 9.0
    logits[1, 8999] = torch.nan
    logits[2] = -torch.inf
    logits[3, 8999] = torch.inf
    logits[4] = -0.0
    logits[4, 4500] = 0.0
    keys, counters = (torch.zeros(size, dtype=torch.uint8) for size in argmax_scratch(width, 5))
    shown, kept = untouched((6,), torch.int32), untouched((6,), torch.int32)
    scratch = (keys.view(torch.int64), counters.view(torch.int32))
    call(argmax(width, stride=width), batch_header(7, rows=5), logits, *scratch, shown, kept)
    assert not counters.any()
    assert shown.tolist() == kept.tolist() == [4097, -1, 0, 8999, 0, 77]


RULES = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.2, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 64, 100, 5000]),
    top_p=st.sampled_from([1e-9, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
NUMBERS = st.sampled_from([0.0, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([5, 64, 97, 2048, 2049, 6001]), st.integers(0, 2**31),
       st.lists(st.tuples(RULES, NUMBERS), min_size=1, max_size=3), st.data())  # fmt: skip
def test_tokens_are_drawn_as_the_host_would(
    width: int, seed: int, asked: list[tuple[SamplingParams, float]], data: st.DataObject
) -> None:
    """Coarse values give ties within a part and between parts; few are left above -inf or none."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(asked), width, generator=generator) * data.draw(
        st.sampled_from([0.01, 1.0, 5.0])
    )
    coarse = data.draw(st.sampled_from([0.0, 0.5, 4.0]))
    if coarse:
        logits = (logits / coarse).round() * coarse  # -0 among them
    banned = data.draw(st.sampled_from([0.0, 0.5, 0.999, 1.0]))
    logits[torch.rand(logits.shape, generator=generator) < banned] = -torch.inf
    for special in data.draw(st.lists(st.sampled_from([torch.nan, torch.inf]), max_size=1)):
        logits[0, data.draw(st.integers(0, width - 1))] = special
    check_drawn(logits, asked)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, top_k=65),  # more than a part hands over
        SamplingParams(temperature=1.0, top_p=0.99),
        SamplingParams(temperature=1.0, min_p=0.5),
        SamplingParams(temperature=1.0, top_k=900, top_p=0.9, min_p=0.2),
    ],
    ids=["top_k", "top_p", "min_p", "all"],
)
def test_what_no_part_handed_over_is_drawn_too(params: SamplingParams) -> None:
    """Of a flat row with many ties, at its end, and of a row with all its tokens in one part."""
    logits = torch.full((2, 9000), -0.25)
    logits[0] += (torch.arange(9000) % 7) / 64
    logits[1] = -40.0
    logits[1, 4096:4224] = 1.0
    for number in (0.0, 0.4, 0.95, 1 - 2**-53):
        check_drawn(logits, [(params, number)] * 2)


def check_drawn(logits: torch.Tensor, asked: list[tuple[SamplingParams, float]]) -> None:
    """Draws by these rules and random numbers, a row each, behind `argmax`."""
    rows, width = logits.shape
    rules = [params.resolve({}) for params, _ in asked]
    draws = [
        LARGEST if rule.temperature == 0 else (random_word(number), *draw_rule(rule, width))
        for rule, (_, number) in zip(rules, asked, strict=True)
    ]
    words = torch.tensor([*draws, (7, 7, 7, 7)], dtype=torch.int64)
    keys, counters = (torch.zeros(n, dtype=torch.uint8) for n in argmax_scratch(width, rows))
    scratch = [keys.view(torch.int64), counters.view(torch.int32)]
    batch = batch_header(rows + 2, rows=rows)
    said, chosen = untouched((rows + 1,), torch.int32), untouched((rows + 1,), torch.int32)
    call(argmax(width, stride=width), batch, logits, *scratch, said, chosen)
    parts, keys, counters = (torch.zeros(n, dtype=torch.uint8) for n in draw_scratch(width, rows))
    scratch = [parts.view(torch.int64), keys.view(torch.int64), counters.view(torch.int32)]
    call(draw(width, stride=width), batch, words, logits, *scratch, said, chosen)
    want = [chosen_token(row.numpy(), each) for row, each in zip(logits, draws, strict=True)]
    assert said.tolist() == chosen.tolist() == [*want, 77]
    assert not counters.any()


@FEW
@given(st.integers(1, 2100), st.integers(1, 70), st.integers(1, 40), st.integers(0, 70),
       st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 3))  # fmt: skip
def test_inputs_are_taken_as_far_as_they_are_used(
    tokens: int, sequences: int, width: int, rows: int, unknown: float, pools: int
) -> None:
    check_inputs(tokens, sequences, width, rows, unknown, pools)


def check_inputs(
    tokens: int, sequences: int, width: int, rows: int, unknown: float = 0.0, pools: int = 1
) -> None:
    """unknown: the share of tokens that the step in front has chosen; of its row 3 nothing was.
    There is room behind each pool's block table, and what is there stays as it was."""
    pitch = sequences * width + 5
    long, short = torch.int64, torch.int32
    sizes = [
        (long, tokens), (long, tokens), (short, sequences + 1), (short, pitch * pools - 5),
        (short, rows), (long, 4 * rows),
    ]  # fmt: skip
    given = [torch.randint(1 << 30, (size + 5,), dtype=dtype) for dtype, size in sizes]
    chosen = torch.randint(1 << 30, (64,), dtype=torch.int32)
    chosen[3] = -1
    known = given[0].clone()
    for place in torch.nonzero(torch.rand(len(known)) < unknown)[:, 0].tolist():
        row = place * 7 % 64
        given[0][place], known[place] = -1 - row, chosen[row].clamp(min=0)
    header = batch_header(tokens, sequences, width, rows)
    header[4] = pitch if pools > 1 else 0
    taken = [untouched(each.shape, each.dtype) for each in (header, *given)]
    call(take_inputs(pools=pools), header, *given, chosen, *taken)
    assert torch.equal(taken[0], header)
    between = torch.arange(pools * pitch) % pitch >= pitch - 5
    assert (taken[4][between] == 77).all()
    given[3][between] = 77
    for source, target in zip((known, *given[1:]), taken[1:], strict=True):
        used = len(source) - 5
        assert torch.equal(target[:used], source[:used])
        assert (target[used:] == 77).all()


def test_places_are_found_in_every_pool() -> None:
    """Two sequences of 2 and 3 tokens; the room behind each pool's places stays as it is."""
    header = batch_header(5, 2, 4)
    header[4] = 11
    positions, starts = torch.tensor([40, 41, 0, 1, 2]), torch.tensor([0, 2, 5]).int()
    tables = torch.randint(1000, (3, 11), dtype=torch.int32)
    sequences, slots = untouched((5,), torch.int32), untouched((24,), torch.int32)
    kernel = token_slots(block_size=16, pools=3, most=8)
    call(kernel, header, positions, starts, tables, sequences, slots, spare=3)
    assert sequences.tolist() == [0, 0, 1, 1, 1]
    for table, places in zip(tables.tolist(), slots.reshape(3, 8).tolist(), strict=True):
        first = [16 * table[2] + 8, 16 * table[2] + 9]
        assert places[:5] == [*first, *(16 * table[4] + at for at in range(3))]
        assert places[5:] == [77] * 3
