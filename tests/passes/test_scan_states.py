"""insert-kv-cache on recurrences, how they are printed, and the slots of their states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, fire, rows

from graphwright.ir import Level, PassError, Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.ir.op import get_op
from graphwright.ir.paging import PagedCache
from graphwright.ir.states import RecurrentState
from graphwright.ir.tolerance import check_close
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.recognize_attention import RecognizeAttention

aten, gw = torch.ops.aten, torch.ops.gw
STEPS = {sample.name: sample.kwargs["step"] for sample in get_op("scan_along_tokens").samples()}
WIDTH = 37
TOKENS = rows(dtype=torch.int64, batch=False)


def recurrent(after: Any = lambda y: y, decay: Any = aten.sigmoid.default) -> Program:
    """embedding → s = decay s + x → head."""
    torch.manual_seed(0)

    def function(tokens: Any, positions: Any, table: Any, gate: Any, head: Any) -> Any:
        x = aten.embedding.default(table, tokens)
        rates = decay(aten.linear.default(x, gate))
        y = gw.scan_along_tokens.default([x, rates], [], step=STEPS["channels"])
        return aten.linear.default(after(y), head)

    program = build_program(
        function, Level.NORMALIZED, tokens=TOKENS, positions=TOKENS,
        table=torch.randn(8, WIDTH), gate=torch.randn(WIDTH, WIDTH) / 6,
        head=torch.randn(32, WIDTH) / 6,
    )  # fmt: skip
    program.clean()
    return program


def cached() -> Program:
    program = recurrent()
    assert fire(program, RecognizeAttention(), InsertKvCache())[0] == [0, 1]
    return program


def test_a_recurrence_gets_a_state() -> None:
    program = cached()
    assert program.level is Level.CACHED and program.states == [RecurrentState("scan0", WIDTH)]
    assert (
        format_graph(program)
        == """\
%tokens : i64[T] = input
%positions : i64[T] = input
%query_start : i32[B1] = input
%block_table : i32[B, M] = input
%scan0 : f32[S, 37] = input
%table : f32[8, 37] = weight
%gate : f32[37, 37] = weight
%head : f32[32, 37] = weight
%embedding_1 : f32[T, 37] = aten.embedding(%table, %tokens)
%linear_1 : f32[T, 37] = aten.linear(%embedding_1, %gate)
%sigmoid_1 : f32[T, 37] = aten.sigmoid(%linear_1)
%cached_scan_1 : f32[T, 37] = gw.cached_scan([%embedding_1, %sigmoid_1], [], %scan0, %positions, \
%query_start, %block_table)
  | %state_0 : f32[1, 37] = input
  | %row_1 : f32[1, 37] = input
  | %row_2 : f32[1, 37] = input
  | %mul_1 : f32[1, 37] = aten.mul.Tensor(%state_0, %row_2)
  | %add_1 : f32[1, 37] = aten.add.Tensor(%mul_1, %row_1)
  | return (%add_1, %add_1)
%linear_2 : f32[T, 32] = aten.linear(%cached_scan_1, %head)
return %linear_2
"""
    )
    assert fire(program, InsertKvCache())[0] == [0]


def test_steps_of_a_batch_give_what_one_sequence_gives() -> None:
    """Whatever runs beside, in whatever pieces, also in a slot that another sequence left."""
    stateless, program = recurrent(), cached()
    cache = PagedCache(program, num_blocks=12, block_size=4, slots=3)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 8, (n,), generator=generator) for n in (13, 5, 1, 9)]
    wants = [run_program(stateless, {"tokens": s, "positions": torch.arange(len(s))})
             for s in sequences]  # fmt: skip
    numbers = [cache.start() for _ in range(3)]
    for pieces in (((0, 4), (1, 1), (2, 1)), ((0, 1), (1, 3)), ((1, 1), (0, 8))):
        batch = []
        for i, count in pieces:
            begin = cache.length(numbers[i])
            batch.append((numbers[i], sequences[i][begin : begin + count]))
        want = torch.cat([wants[i][cache.length(numbers[i]) :][:count] for i, count in pieces])
        check_close(run_program(program, cache.inputs(batch)), want)
    cache.finish(numbers[1])
    other = cache.start()
    for begin, end in ((0, 2), (2, 9)):
        inputs = cache.inputs([(other, sequences[3][begin:end])])
        check_close(run_program(program, inputs), wants[3][begin:end])


def test_what_mixes_tokens_around_a_recurrence_is_refused() -> None:
    for after, reason in (
        (lambda y: aten.cumsum.default(y, 0), "cumsum.default) works along the token axis"),
        (lambda y: aten.flip.default(y, [0]), "flip.default) works along the token axis"),
    ):
        with pytest.raises(PassError) as error:
            fire(recurrent(after), RecognizeAttention(), InsertKvCache())
        assert reason in str(error.value)
    with pytest.raises(PassError, match="token axis"):
        fire(
            recurrent(decay=lambda r: aten.sub.Tensor(r, aten.mean.dim(r, [0], True))),
            RecognizeAttention(), InsertKvCache(),
        )  # fmt: skip


# ---- slots


def test_sequences_start_with_blocks_that_have_a_slot() -> None:
    program = cached()
    cache = PagedCache(program, num_blocks=9, block_size=2, slots=3)
    numbers = [cache.start() for _ in range(3)]
    given = cache.inputs([(number, torch.zeros(5, dtype=torch.int64)) for number in numbers])
    assert given["scan0"].shape == (3, WIDTH) and bool(given["scan0"].isnan().all())
    table = given["block_table"]
    assert sorted(table[:, 0].tolist()) == [0, 1, 2]
    assert sorted(table[:, 1:].flatten().tolist()) == [3, 4, 5, 6, 7, 8]
    with pytest.raises(PassError, match="the 9 blocks of 2 positions are all taken; sequence 0"):
        cache.inputs([(numbers[0], torch.zeros(3, dtype=torch.int64))])
    cache.finish(numbers[2])
    again = cache.start()
    given = cache.inputs([(again, torch.zeros(1, dtype=torch.int64))])
    assert given["block_table"].tolist() == [[table[2, 0]]]


def test_more_sequences_than_slots_are_refused() -> None:
    cache = PagedCache(cached(), num_blocks=20, block_size=2, slots=2)
    batch = [(cache.start(), torch.zeros(1, dtype=torch.int64)) for _ in range(3)]
    with pytest.raises(PassError, match="the 2 first blocks of 2 positions are all taken"):
        cache.inputs(batch)


def test_a_long_sequence_takes_blocks_that_nobody_starts_with() -> None:
    """And gives each back to those it came from."""
    cache = PagedCache(cached(), num_blocks=4, block_size=2, slots=3)
    for _ in range(3):
        number = cache.start()
        table = cache.inputs([(number, torch.zeros(8, dtype=torch.int64))])["block_table"]
        assert sorted(table[0].tolist()) == [0, 1, 2, 3] and table[0, 0] < 3
        cache.finish(number)


def test_without_recurrent_states_every_block_is_one_to_start_with() -> None:
    program = recurrent()
    cache = PagedCache(program, num_blocks=20, block_size=2, slots=2)
    batch = [(cache.start(), torch.zeros(1, dtype=torch.int64)) for _ in range(20)]
    table = cache.inputs(batch)["block_table"]
    assert sorted(table.flatten().tolist()) == list(range(20))
