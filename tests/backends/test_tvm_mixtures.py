"""Mixtures of experts as whole programs: both entries, what is shared, and what the plan counts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import build_program, rows
from step_driver import CompiledProgram

from graphwright.backends.tvm.build import BuiltProgram, build
from graphwright.backends.tvm.target import host_cpu
from graphwright.ir import BackendError, Level, Program
from graphwright.ir.interpreter import run_program
from graphwright.ir.schemes import quantize_weight
from graphwright.ir.tolerance import check_close
from graphwright.passes.base import PassContext
from graphwright.passes.plan_memory import PlanMemory
from graphwright.passes.running import run_passes

aten, gw = torch.ops.aten, torch.ops.gw
CPU = host_cpu()
EXPERTS, SLOTS, WIDTH, INNER = 6, 2, 32, 40


def weights(scheme: str | None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {
        "table": torch.randn(50, WIDTH),
        "router": torch.randn(EXPERTS, WIDTH),
        "wide": torch.randn(EXPERTS, 2 * INNER, WIDTH) * WIDTH**-0.5,
        "narrow": torch.randn(EXPERTS, WIDTH, INNER) * INNER**-0.5,
        "bias": torch.randn(EXPERTS, WIDTH),
    }
    for name in ("wide", "narrow") if scheme else ():
        count, n, k = found[name].shape
        q, scale = quantize_weight(found[name].reshape(-1, k), scheme)  # type: ignore[arg-type]
        found[name] = q.reshape(count, n, k)
        found[f"{name}_scale"] = scale.reshape(count, n, -1)
    return found


def mixture(tokens: Any, table: Any, router: Any, wide: Any, narrow: Any, bias: Any) -> Any:
    """An embedding, a mixture of gated experts and a tied head."""
    x = gw.embedding.default(table, tokens)
    values, experts = routed(x, router)
    both = gw.routed_linear.default(x, experts, wide)
    y = gw.routed_linear.default(gated(both), experts, narrow, bias)
    return head(gw.weighted_sum.default(y, values), table)


def quantized_mixture(tokens: Any, table: Any, router: Any, wide: Any, wide_scale: Any,
                      narrow: Any, narrow_scale: Any, bias: Any) -> Any:  # fmt: skip
    x = gw.embedding.default(table, tokens)
    values, experts = routed(x, router)
    product = gw.quantized_routed_linear.default
    both = product(x, experts, wide, wide_scale, scheme="w8")
    y = product(gated(both), experts, narrow, narrow_scale, bias, scheme="w8")
    return head(gw.weighted_sum.default(y, values), table)


def routed(x: Any, router: Any) -> Any:
    """The best of all experts, weighted by the best of each half of them."""
    scores = gw.linear.default(x, router, activation="sigmoid")
    halves = aten.reshape.default(scores, [-1, SLOTS, EXPERTS // SLOTS])
    values = gw.top_k.default(halves, k=1)[0]
    return aten.reshape.default(values, [-1, SLOTS]), gw.top_k.default(scores, k=SLOTS)[1]


def gated(both: Any) -> Any:
    """[T, S, 2 * INNER] -> [T, S, INNER], in rows that lie inside longer ones."""
    opened = gw.gated_act.default(both, both, activation="silu")
    row = aten.reshape.default(opened, [-1, SLOTS * 2 * INNER])
    part = aten.slice.Tensor(row, 1, 7, 7 + SLOTS * INNER)
    return aten.reshape.default(part, [-1, SLOTS, INNER])


def head(x: Any, table: Any) -> Any:
    return aten.unsqueeze.default(gw.linear.default(x, table), 0)


def planned(function: Any, **parameters: torch.Tensor) -> Program:
    tokens = rows(dtype=torch.int64, batch=False)
    program = build_program(function, level=Level.QUANTIZED, tokens=tokens, **parameters)
    return run_passes(program, [PlanMemory(chunk=40)], PassContext())


def check_program(program: Program, built: BuiltProgram, folder: Path) -> None:
    compiled_program = CompiledProgram(built, folder)
    for count in (1, 3, 8, 9, 40):
        tokens = torch.randint(0, 50, (count,))
        want = run_program(program, {"tokens": tokens})[0]
        for compiled_program.threads in (1, 2, 5):
            check_close(compiled_program.step([(0, tokens.tolist())]), want)
            compiled_program.lengths[0] = 0


@cache
def compiled_mixture(scheme: str | None) -> tuple[Program, BuiltProgram]:
    program = planned(quantized_mixture if scheme else mixture, **weights(scheme))
    return program, build(program, CPU)


def test_a_mixture(tmp_path: Path) -> None:
    program, built = compiled_mixture(None)
    for entry in ("decode", "prefill"):
        names = [phase.kernel.name for phase in built.phases[entry]]
        assert sum(name.startswith("routed_groups") for name in names) == 1, names
    check_program(program, built, tmp_path)


def test_a_quantized_mixture(tmp_path: Path) -> None:
    """The token's row is quantized once for its experts, each slot's row once for its own."""
    program, built = compiled_mixture("w8")
    names = [phase.kernel.name for phase in built.phases["prefill"]]
    assert [name.rpartition("_k")[0] for name in names if name.startswith("quantize")] == [
        "quantize_rows",
        "quantize_rows",
    ]
    assert sum(name.startswith("routed_groups") for name in names) == 1
    check_program(program, built, tmp_path)


@pytest.mark.parametrize("scheme", [None, "w8"])
def test_the_plan_counts_the_experts_of_a_token(scheme: str | None) -> None:
    _, built = compiled_mixture(scheme)
    sizes = {blob["name"]: blob["bytes"] for blob in built.plan["weights"]["entries"]}
    routed_bytes = sum(size for name, size in sizes.items() if name not in ("table", "router"))
    everybody = sizes["table"] + sizes["router"]
    assert routed_bytes > everybody  # the experts are most of it
    read = everybody + routed_bytes * SLOTS // EXPERTS
    assert built.plan["weights"]["bytes_per_token"] == read


def test_other_dtypes_are_refused() -> None:
    found = weights(None)
    parameters = {name: found[name] for name in ("router", "wide", "narrow", "bias")}
    program = planned(mixture, table=found["table"].double(), **parameters)
    with pytest.raises(
        BackendError,
        match=r"routed\.routed_linear: 'embedding_default' is torch\.float64, not float32",
    ):
        build(program, CPU)
