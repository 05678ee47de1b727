"""What phases.json says of an entry agrees with the plan and with arithmetic done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from graphs import rows
from test_tvm_build import feed_forward, feed_forward_weights, planned

from graphwright.backends.blobs import BlobTable
from graphwright.backends.tvm.build import lower_program
from graphwright.backends.tvm.kv_layout import KvLayout
from graphwright.backends.tvm.phase_facts import describe_phases
from graphwright.backends.tvm.target import cpu_by_name
from graphwright.inspector.roofline import Load, Machine, load_of, predict


@pytest.fixture(scope="module")
def lowered() -> tuple[list[dict[str, Any]], BlobTable]:
    """The decode entry's facts, and the weights they are about."""
    program = planned(
        feed_forward, tokens=rows(dtype=torch.int64, batch=False), **feed_forward_weights()
    )
    blobs = BlobTable()
    phases, _ = lower_program(program, cpu_by_name("x86-64-v3"), KvLayout.of(program.states), blobs)
    return describe_phases(program, phases["decode"], blobs), blobs


def test_the_weights_of_all_phases_are_what_the_plan_says_a_token_reads(
    lowered: tuple[list[dict[str, Any]], BlobTable],
) -> None:
    facts, blobs = lowered
    once = sum(each["weight_bytes"] for each in facts)
    norm = 4 * 48  # one blob that two norms read, counted by each
    lookup = math.ceil(4 * 48 * 112 / 100)  # the head's packing pads the table to whole tiles
    assert sum(each["weight_bytes_per_row"] for each in facts) == lookup
    assert once == blobs.bytes_per_token + norm


def test_a_product_counts_two_operations_for_each_weight(
    lowered: tuple[list[dict[str, Any]], BlobTable],
) -> None:
    facts, _ = lowered
    products = [each for each in facts if each["kernel"].startswith("linear")]
    assert [each["operations_per_row"] for each in products] == [
        2 * 144 * 48, 2 * 48 * 72, 2 * 100 * 48,
    ]  # fmt: skip
    assert {each["arithmetic"] for each in facts} == {"float32"}


def test_a_step_is_bound_by_memory_for_one_row_and_by_arithmetic_for_many() -> None:
    facts = {
        "step": "s", "kernel": "k", "layer": 3, "rows": "T", "arithmetic": "int8",
        "weight_bytes": 1000, "weight_bytes_per_row": 10, "lookup_bytes": 25, "bytes_per_row": 4,
        "bytes_per_position": 100, "operations_per_row": 2000, "operations_per_position": 8,
    }  # fmt: skip
    assert load_of(facts, Load(1, 9)) == (1000 + 10 + 4 + 1000, 2000 + 8 * 10)
    # pairs: the first of three rows sees itself and what was before, the last two more
    assert load_of(facts, Load(3, 5)) == (1000 + 25 + 12 + 800, 6000 + 8 * (6 + 7 + 8))
    assert load_of({**facts, "rows": "R"}, Load(3, 5, sampled=0)) == (1800, 8 * 21)
    machine = Machine(bandwidth=1.0, float32=1.0, int8=2.0)
    (one,) = predict([facts], Load(1, 9), machine)
    (many,) = predict([facts], Load(3, 5), machine)
    assert one.bound == "memory" and one.seconds == pytest.approx(2014e-9)
    assert many.bound == "compute" and many.seconds == pytest.approx(6168e-9 / 2)


def test_what_is_handed_on_as_int8_is_not_counted_as_float32() -> None:
    def model(tokens: Any, table: Any, weight: Any, scale: Any) -> Any:
        x = torch.ops.aten.unsqueeze.default(torch.ops.gw.embedding.default(table, tokens), 0)
        y = torch.ops.gw.rms_norm.default(x, None, eps=1e-6)
        return torch.ops.gw.quantized_linear.default(y, weight, scale, scheme="w8")

    program = planned(
        model, tokens=rows(dtype=torch.int64, batch=False), table=torch.randn(10, 96),
        scale=torch.rand(32, 1), weight=torch.randint(-127, 127, (32, 96), dtype=torch.int8),
    )  # fmt: skip
    blobs = BlobTable()
    phases, _ = lower_program(program, cpu_by_name("x86-64-v3"), KvLayout.of(program.states), blobs)
    _, norm, product = describe_phases(program, phases["decode"], blobs)
    int8_row = 128 + 64 + 4  # values, their sum on a line of its own, a scale
    assert norm["bytes_per_row"] == 4 * 96 + int8_row
    assert product["bytes_per_row"] == int8_row + 4 * 32
