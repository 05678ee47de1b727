"""Tuning of matrix products on CPUs: other blocks, the same numbers; and what it says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import tiny_model

import graphwright
import graphwright.compiler
from graphwright import inspector
from graphwright.backends.tuning import Choice, Picks
from graphwright.backends.tvm.build import BuiltProgram, build
from graphwright.backends.tvm.kernels.float_weights import BFLOAT16
from graphwright.backends.tvm.kernels.linear_float import float_tilings
from graphwright.backends.tvm.kernels.linear_quantized import tilings_of
from graphwright.backends.tvm.kernels.matmul import Tiling
from graphwright.backends.tvm.product_choices import (
    MANY,
    SMALL,
    candidate_tilings,
    choose_tilings,
    product_choices,
)
from graphwright.backends.tvm.product_rig import ProductRig, choices_of
from graphwright.backends.tvm.target import cpu_by_name, host_cpu
from graphwright.commands.compile import command
from graphwright.ir import BackendError
from graphwright.ir.schemes import Scheme
from graphwright.machine_code import code_generator
from graphwright.program_tuning import tune_program
from graphwright.runtime.artifact import Artifact

LEVELS = ("x86-64-v3", "x86-64-v4", "x86-64-v4-vnni", "x86-64-v4-amx", "aarch64-dotprod")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["w8", "w8g32", "w4g32", "bf16"])
def test_untuned_products_keep_their_blocks(level: str, kind: str) -> None:
    cpu = cpu_by_name(level)
    default = float_tilings(cpu, BFLOAT16) if kind == "bf16" else tilings_of(
        cpu, Scheme.parse(kind)
    )  # fmt: skip
    for max_rows in (1, 4, 512):
        assert choose_tilings(Picks(), cpu, kind, 64, 64, SMALL + 1, max_rows, default) is None
        small = choose_tilings(Picks(), cpu, kind, 64, 64, SMALL, max_rows, default)
        assert small is not None and small[0] == small[1] and small[2] == 0, "one kind of code"
        like = default[0] if default[1].amx else default[1]
        assert len(small[1].rows) < len(like.rows)
        assert not small[1].ahead and not small[1].amx


def test_picks_become_blocks() -> None:
    cpu = cpu_by_name("x86-64-v3")
    default = few, many, limit = tilings_of(cpu, Scheme.parse("w4g32"))

    def chosen(max_rows: int, **picked: str) -> object:
        keys = {int(rows[1:]): name for rows, name in picked.items()}
        choices = product_choices(cpu, "w4g32", 64, 96, max_rows, default)
        picks = Picks({choice.key: keys[rows] for rows, choice in choices.items() if rows in keys})
        return choose_tilings(picks, cpu, "w4g32", 64, 96, SMALL + 1, max_rows, default)

    one = replace(few, rows=(1,), tiles=2, abreast=1)
    batch = replace(few, rows=(2, 1), abreast=1)
    assert chosen(8, r1="1x2a") == (one, few, 1)
    assert chosen(8, r8="2x1a") == (few, batch, 1)
    assert chosen(8, r1="1x2a", r8="2x1a") == (one, batch, 1)
    assert chosen(8, r1="1x1as4", r8=few.name) is None
    assert chosen(512, r256="2x1") == (few, replace(many, rows=(2, 1)), limit)
    assert chosen(512, r256="9x9") is None, "no candidate: a record of another version"


def test_blocks_of_tile_registers_are_named() -> None:
    cpu = cpu_by_name("x86-64-v4-amx")
    default = few, many, limit = tilings_of(cpu, Scheme.parse("w8"))
    (choice,) = product_choices(cpu, "w8", 64, 96, 512, default).values()
    assert {many.name, "32x2m", "8x2"} <= set(choice.candidates)
    picks = Picks({choice.key: "32x2m"})
    wanted = (few, replace(many, tiles=2), limit)
    assert choose_tilings(picks, cpu, "w8", 64, 96, SMALL + 1, 512, default) == wanted
    assert not tilings_of(cpu, Scheme.parse("w8"), gathered=True)[1].amx, "rows of experts are any"


def test_tiles_abreast_may_have_prefetches() -> None:
    cpu = cpu_by_name("x86-64-v4-amx")
    plain, ahead = (
        candidate_tilings(1, name, tilings_of(cpu, Scheme.parse("w4g32")))
        for name in ("1x1as4", "1x1as4a")
    )
    assert plain and ahead
    assert (plain[0].name, ahead[0].name) == ("1x1as4", "1x1as4a")
    pairs = [(each[0].alone(1 << 14), each[0].alone(1 << 10)) for each in (plain, ahead)]
    assert pairs == [(Tiling((1,), 4, ahead=False), None), (Tiling((1,), 4), None)]


def test_float_products_keep_three_kinds_of_blocks() -> None:
    """With AVX2 few rows are up to four, and a decode step may have eight."""
    cpu = cpu_by_name("x86-64-v3")
    default = few, many, limit = float_tilings(cpu, BFLOAT16)
    assert limit < 8
    (choice,) = product_choices(cpu, "bf16", 64, 96, 8, default).values()
    picks = Picks({choice.key: "1x2a"})
    wide = replace(few, rows=(2, 1), tiles=2, abreast=1)
    assert choose_tilings(picks, cpu, "bf16", 64, 96, SMALL, 8, default) == (wide, many, limit)


def test_the_rig_runs_every_candidate() -> None:
    """Odd sizes, each bucket of rows; all runs give a time."""
    cpu = host_cpu()
    rig = ProductRig(cpu, 2, weight_bytes=100_000)
    for kind in ("w8", "bf16"):
        default = float_tilings(cpu, BFLOAT16) if kind == "bf16" else tilings_of(
            cpu, Scheme.parse(kind)
        )  # fmt: skip
        found: dict[int, Choice] = {}
        for max_rows in (1, 512):
            found |= product_choices(cpu, kind, 40, 96, max_rows, default)
        assert set(found) == {1, 8, MANY}
        for choice in found.values():
            with rig.prepare(choice) as runs:
                assert set(runs) == set(choice.candidates)
                assert all(0 < run() < 10 for run in runs.values())


def test_the_rig_has_as_many_threads_as_it_says() -> None:
    """In a process of its own: TVM's threads start once, for half of the CPUs by default."""
    threads = len(os.sched_getaffinity(0))
    script = f"""
import tvm
from graphwright.backends.tvm.kernels.linear_quantized import tilings_of
from graphwright.backends.tvm.kernels.matmul import Tiling
from graphwright.backends.tvm.product_choices import product_choices
from graphwright.backends.tvm.product_rig import ProductRig
from graphwright.backends.tvm.target import host_cpu
from graphwright.ir.schemes import Scheme
cpu = host_cpu()
default = tilings_of(cpu, Scheme.parse("w8"))
choice = product_choices(cpu, "w8", 64, 64, 1, default)[1]
with ProductRig(cpu, {threads}, 0).prepare(choice) as runs:
    print(tvm.get_global_func("runtime.NumThreads")())
"""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", script], text=True, capture_output=True, check=True, env=environment
    )
    assert done.stdout.split()[-1] == str(threads)


@pytest.fixture(scope="module")
def tuned() -> graphwright.compiler.Compiled:
    return graphwright.compile(tiny_model("llama"), quant="w4g32", check=False, tune=0.05)


def test_other_blocks_compute_the_same(
    tuned: graphwright.compiler.Compiled, tmp_path: Path
) -> None:
    """Every choice takes its last candidate; integer products are equal to the bit."""
    asked, _ = choices_of(tuned.program, host_cpu(), 2)
    assert {choice.kernel for choice in asked} == {"linear_w4g32"}
    other = build(tuned.program, host_cpu(), picks=Picks({c.key: c.candidates[-1] for c in asked}))
    assert other.plan == tuned.built.plan
    first = tuned.variants[0]
    assert isinstance(first, BuiltProgram) and other.library != first.library
    engines = [
        graphwright.load(replace(tuned, variants=(each,)).save(tmp_path / f"{number}.gw"))
        for number, each in enumerate((first, other))
    ]
    tokens = np.random.default_rng(0).integers(0, 64, 40).tolist()
    for length in (1, 5, 40):
        one, two = (engine.logits(tokens[:length]) for engine in engines)
        np.testing.assert_array_equal(two, one)


def test_a_tuned_artifact_says_so(tuned: graphwright.compiler.Compiled, tmp_path: Path) -> None:
    assert {each.source for each in tuned.tuned} == {"measured", "skipped"}
    artifact = Artifact.open(tuned.save(tmp_path / "tuned.gw"))
    rows = json.loads(artifact.read("tuning.json"))
    assert len(rows) == len(tuned.tuned) > 0
    assert "inspect --tuning" in inspector.summary(artifact)
    assert len(inspector.tuning_table(artifact).splitlines()) == 1 + len(rows)


def test_what_was_measured_is_not_measured_again(tuned: graphwright.compiler.Compiled) -> None:
    again = tune_program(
        tuned.program, code_generator("host", "auto", tuned=True), 0.001, lambda share, text: None
    )
    recorded = {each.choice.key for each in again if each.source == "recorded"}
    assert recorded == {each.choice.key for each in tuned.tuned if each.source == "measured"}


@pytest.mark.parametrize(
    ("target", "words"),
    [("aarch64", "on the machine that compiles"), ("host,x86-64-v4", "that alone")],
)
def test_only_this_machine_is_tuned_for(target: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        graphwright.compile(tiny_model("llama"), target=target, tune=1.0)


def test_a_budget_must_be_positive() -> None:
    with pytest.raises(BackendError, match="more than 0 seconds"):
        graphwright.compile(tiny_model("llama"), check=False, tune=0.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--tune", "--tune-budget", "0"], "--tune-budget"), (["--tune-budget", "5"], "with --tune")],
)
def test_wrong_options_are_usage_errors(arguments: list[str], words: str) -> None:
    assert isinstance(command, click.Command)
    result = CliRunner().invoke(command, ["model", *arguments])
    assert result.exit_code == 2
    assert words in result.output
