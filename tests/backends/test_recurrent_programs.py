"""Whole programs with recurrences: lowered, compiled and run; where their states lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import build_program, rows
from step_driver import CompiledProgram
from torch import fx

from graphwright.backends.tvm.build import BuiltProgram, build
from graphwright.backends.tvm.kv_layout import KvLayout
from graphwright.backends.tvm.target import host_cpu
from graphwright.inspector.roofline import Load, load_of
from graphwright.ir import BackendError, ConstantTensor, ConvState, KVState, Level, Mask, Program
from graphwright.ir.interpreter import run_program
from graphwright.ir.op import get_op
from graphwright.ir.paging import PagedCache
from graphwright.ir.scan_step import ScanStep
from graphwright.ir.states import RecurrentState
from graphwright.ir.tolerance import check_close
from graphwright.passes.base import PassContext
from graphwright.passes.plan_memory import PlanMemory
from graphwright.passes.running import run_passes

aten, gw = torch.ops.aten, torch.ops.gw
STEPS = {sample.name: sample.kwargs["step"] for sample in get_op("cached_scan").samples()}
TOKENS = rows(dtype=torch.int64, batch=False)


def recurrent(names: list[str]) -> Program:
    """A product, recurrences of rows that are cut out of it, and a product of what they give."""
    parsed = [ScanStep.parse(STEPS[name]) for name in names]
    sizes = [[tuple(node.meta["val"].shape[1:]) for node in _rows(step)] for step in parsed]
    width = sum(torch.Size(shape).numel() for each in sizes for shape in each)
    torch.manual_seed(0)

    def model(tokens: Any, positions: Any, table: Any, wide: Any, head: Any) -> Any:
        x = gw.linear.default(gw.embedding.default(table, tokens), wide)
        return gw.linear.default(x, head)

    program = build_program(
        model, level=Level.QUANTIZED, tokens=TOKENS, positions=TOKENS,
        table=torch.randn(50, 16), wide=torch.randn(width, 16) / 8, head=torch.randn(50, width),
    )  # fmt: skip
    start = program.add_input("query_start", ["B1"], torch.int32, hint=4)
    blocks = program.add_input("block_table", ["B", "M"], torch.int32, hint=3)
    out = program.output
    merged: Any = out.args[0]
    at, total = 0, None
    for number, (step, shapes, name) in enumerate(zip(parsed, sizes, names, strict=True)):
        state = RecurrentState(f"scan{number}", step.state_size)
        program.states.append(state)
        held = program.add_input(state.name, ["N", state.size], torch.float32, hint=7)
        given = []
        for shape in shapes:
            row = program.call(
                out, aten.slice.Tensor, merged, 1, at, at := at + torch.Size(shape).numel()
            )
            row = program.call(out, aten.reshape.default, row, [-1, *shape])
            given.append(row)
        weights = [
            program.add_weight(f"w{number}", ConstantTensor.of(torch.randn(node.meta["val"].shape)))
            for node in step.placeholders[len(step.states) + step.rows :]
        ]
        y = program.call(
            out, gw.cached_scan.default, given, weights, held, program.placeholder("positions"),
            start, blocks, step=STEPS[name],
        )  # fmt: skip
        head = program.add_weight(
            f"head{number}", ConstantTensor.of(torch.randn(50, step.result_size) / 8)
        )
        total = program.call(out, gw.linear.default, y, head, None, total)
    assert isinstance(total, fx.Node)
    program.replace(out, total)
    program.drop_dead()
    return run_passes(program, [PlanMemory(chunk=40)], PassContext())


def _rows(step: ScanStep) -> list[fx.Node]:
    return step.placeholders[len(step.states) :][: step.rows]


@pytest.fixture(scope="module")
def program() -> Program:
    return recurrent(["delta-rule", "window", "channels", "two-states"])


@pytest.fixture(scope="module")
def built(program: Program) -> BuiltProgram:
    return build(program, host_cpu())


def test_sequences_come_and_go(program: Program, built: BuiltProgram, tmp_path: Path) -> None:
    torch.manual_seed(1)
    for threads in (1, 2, 5):
        compiled, cache = CompiledProgram(built, tmp_path), PagedCache(program)
        compiled.threads = threads
        numbers = [cache.start() for _ in range(3)]
        for counts in ((1, 4, 0), (1, 1, 2), (9, 1, 17), (0, 0, 1), (1, 1, 1)):
            batch = [(i, torch.randint(0, 50, (n,))) for i, n in enumerate(counts) if n]
            inputs = cache.inputs([(numbers[i], tokens) for i, tokens in batch])
            got = compiled.step([(i, tokens.tolist()) for i, tokens in batch])
            check_close(got, run_program(program, inputs))
        cache.finish(numbers[1])
        numbers[1] = cache.start()
        compiled.lengths[1] = 0
        tokens = torch.randint(0, 50, (3,))
        want = run_program(program, cache.inputs([(numbers[1], tokens)]))
        check_close(compiled.step([(1, tokens.tolist())]), want)


def test_the_plan_says_where_states_lie(built: BuiltProgram) -> None:
    kv = built.plan["kv"]
    assert (kv["block_bytes"], kv["states"], kv["rolling"]) == (0, [], [])
    assert kv["recurrent"] == [
        {"name": "scan0", "size": 480, "offset": 0},
        {"name": "scan1", "size": 44, "offset": 1920},
        {"name": "scan2", "size": 37, "offset": 1920 + 192},
        {"name": "scan3", "size": 18, "offset": 1920 + 192 + 192},
    ]
    assert kv["slot_bytes"] == 1920 + 192 + 192 + 128


def test_one_phase_that_no_thread_repeats(built: BuiltProgram) -> None:
    scans = [phase for phase in built.phases["decode"] if phase.kernel.name.startswith("scan")]
    assert [phase.step for phase in scans] == [
        "cached_scan_default", "cached_scan_default_1", "cached_scan_default_2",
        "cached_scan_default_3",
    ]  # fmt: skip
    assert not any(phase.replicated for phase in scans)
    assert all(phase.kernel in [p.kernel for p in built.phases["prefill"]] for phase in scans)


def test_facts_count_states_once_a_sequence(built: BuiltProgram) -> None:
    first = next(each for each in built.facts["decode"] if each["step"] == "cached_scan_default")
    assert first["bytes_per_sequence"] == 2 * 4 * 480
    moved = 4 * (24 + 24 + 60 + 3 + 3 + 60) + 8 + 4  # and a position, a start
    assert first["bytes_per_row"] == moved
    # gate * S, times k, summed; v - that, times beta; k times it, added; times q, summed
    operations = 480 * 3 + 60 * 2 + 480 * 4
    assert first["operations_per_row"] == operations
    assert load_of(first, Load(5, 100)) == (2 * 4 * 480 + 5 * moved, 5 * operations)
    others = [each for each in built.facts["decode"] if "scan" not in each["step"]]
    assert others and not any("bytes_per_sequence" in each for each in others)


def test_slots_lie_before_the_blocks() -> None:
    cache = KVState("kv0", 2, 8, 8, torch.float32, Mask.parse("causal"))
    states = [
        cache, RecurrentState("scan1", 20), ConvState("conv2", 3, 5, torch.float32),
        RecurrentState("scan3", 16),
    ]  # fmt: skip
    layout = KvLayout.of(states)
    assert layout.slot_bytes == 128 + 64
    assert [layout.place_of(name) for name in ("scan1", "scan3")] == [-192, -64]
    plain = KvLayout.of([states[0], states[2]])
    assert plain.block_bytes == layout.block_bytes
    assert layout.place_of("conv2") == plain.offsets["conv2"] > 0
    assert "recurrent" not in plain.describe() and "slot_bytes" not in plain.describe()


def test_a_step_that_cannot_be_lowered_is_named() -> None:
    step = STEPS["channels"].replace("aten.add.Tensor", "aten.igamma.default")
    assert step != STEPS["channels"]
    STEPS["bad"] = step
    with pytest.raises(BackendError, match=r"the recurrence 'cached_scan_default'.*igamma"):
        build(recurrent(["bad"]), host_cpu())
