"""Lowering, packing and compiling small programs: the library computes what the references say."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import build_program, rows
from step_driver import CompiledProgram
from torch import fx

from graphwright.backends.blobs import BlobTable, dense
from graphwright.backends.registry import Registry
from graphwright.backends.tvm.build import BuiltProgram, build
from graphwright.backends.tvm.context import LoweringContext
from graphwright.backends.tvm.emit import kernels_of
from graphwright.backends.tvm.kernels.float_weights import FLOAT32
from graphwright.backends.tvm.layouts import linear_float_layout
from graphwright.backends.tvm.link import find_linker, link
from graphwright.backends.tvm.phases import PARAMETERS, Phase
from graphwright.backends.tvm.registry import lowering, lowerings_of
from graphwright.backends.tvm.target import host_cpu
from graphwright.ir import BackendError, Level, Program
from graphwright.ir.interpreter import run_program
from graphwright.ir.schemes import quantize_weight
from graphwright.ir.tolerance import check_close
from graphwright.ir.weights import ConstantTensor
from graphwright.passes.base import PassContext
from graphwright.passes.plan_memory import PlanMemory
from graphwright.passes.running import run_passes

aten, gw = torch.ops.aten, torch.ops.gw
TOKENS = rows(dtype=torch.int64, batch=False)


def planned(function: Any, **parameters: Any) -> Program:
    program = build_program(function, level=Level.QUANTIZED, **parameters)
    return run_passes(program, [PlanMemory(chunk=40)], PassContext())


def feed_forward(tokens: Any, table: Any, norm: Any, wide: Any, narrow: Any) -> Any:
    """A tied embedding, gate and up in one product, a residual."""
    x = aten.unsqueeze.default(gw.embedding.default(table, tokens), 0)
    merged = gw.linear.default(gw.rms_norm.default(x, norm, eps=1e-6), wide)
    gate, up = aten.slice.Tensor(merged, 2, 0, 72), aten.slice.Tensor(merged, 2, 72, 144)
    y = gw.gated_act.default(gate, up, activation="silu")
    total = gw.add_rms_norm.default(gw.linear.default(y, narrow), x, norm, eps=1e-6)
    return gw.linear.default(total[1], table)


def feed_forward_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "table": torch.randn(100, 48),
        "norm": torch.rand(48),
        "wide": torch.randn(144, 48) / 7,
        "narrow": torch.randn(48, 72) / 8,
    }


@pytest.fixture(scope="module")
def program() -> Program:
    return planned(feed_forward, tokens=TOKENS, **feed_forward_weights())


@pytest.fixture(scope="module")
def built(program: Program) -> BuiltProgram:
    return build(program, host_cpu())


@pytest.mark.parametrize("count", [1, 3, 8, 9, 40])
def test_library_computes_what_the_references_say(
    program: Program, built: BuiltProgram, tmp_path: Path, count: int
) -> None:
    compiled = CompiledProgram(built, tmp_path)
    tokens = torch.randint(0, 100, (count,))
    want = run_program(program, {"tokens": tokens})[0]
    for compiled.threads in (1, 2, 5):
        got = compiled.step([(0, tokens.tolist())])
        check_close(got, want)
        compiled.lengths[0] = 0


def test_quantized_program(tmp_path: Path) -> None:
    """Products of one input share its int8 form; table and head are one weight."""

    def model(tokens: Any, table: Any, table_scale: Any, a: Any, a_scale: Any, b: Any,
              b_scale: Any, bias: Any) -> Any:  # fmt: skip
        x = gw.quantized_embedding.default(table, table_scale, tokens, scheme="w8")
        one = gw.quantized_linear.default(x, a, a_scale, scheme="w8", activation="gelu")
        two = gw.quantized_linear.default(x, b, b_scale, bias, one, scheme="w8")
        three = gw.quantized_linear.default(two, b, b_scale, None, x, scheme="w8")
        return gw.quantized_linear.default(three, table, table_scale, scheme="w8")

    torch.manual_seed(0)
    pairs = {
        name: quantize_weight(torch.randn(count, 64) / 8, "w8")
        for name, count in (("table", 50), ("a", 64), ("b", 64))
    }
    weights = {name: pair[0] for name, pair in pairs.items()}
    weights |= {f"{name}_scale": pair[1] for name, pair in pairs.items()}
    program = planned(model, tokens=TOKENS, bias=torch.randn(64), **weights)
    built = build(program, host_cpu())
    kinds = [phase.kernel.name.split("_")[0] for phase in built.phases["decode"]]
    assert kinds.count("quantize") == 3 and kinds.count("linear") == 4
    assert [blob["layout"] for blob in built.plan["weights"]["entries"]].count("linear-w8") == 3
    compiled = CompiledProgram(built, tmp_path)
    for count in (1, 7, 30):
        tokens = torch.randint(0, 50, (count,))
        got = compiled.step([(0, tokens.tolist())])
        check_close(got, run_program(program, {"tokens": tokens}))
        compiled.lengths[0] = 0


def test_weights_lie_in_the_order_they_are_read(built: BuiltProgram) -> None:
    found = [(b["name"], b["layout"], b["offset"]) for b in built.plan["weights"]["entries"]]
    assert [name for name, *_ in found] == ["norm", "wide", "narrow", "table"]
    assert [layout for _, layout, _ in found] == ["dense", "linear-f32", "linear-f32", "linear-f32"]
    assert all(offset % 64 == 0 for *_, offset in found)
    weights = built.plan["weights"]
    last = weights["entries"][-1]
    assert weights["bytes"] == last["offset"] + last["bytes"] == built.weight_bytes
    assert weights["bytes_per_token"] == weights["bytes"]


def test_plan_of_the_artifact(built: BuiltProgram) -> None:
    assert set(built.plan) == {
        "entries", "alone_rows", "kv", "weights", "vocab_size", "max_context",
        "float_products",
    }  # fmt: skip
    assert built.plan["vocab_size"] == 100
    decode = built.plan["entries"]["decode"]
    assert (decode["max_tokens"], decode["max_rows"]) == (8, 8)
    assert set(decode["buffers"][0]) == {"name", "offset", "bytes", "first", "last"}
    assert built.plan["kv"] == {"block_size": 16, "block_bytes": 0, "states": [], "rolling": []}


def test_ledger_says_who_lowered_what(built: BuiltProgram) -> None:
    decode = [entry for entry in built.ledger if entry.entry == "decode"]
    assert [entry.lowering for entry in decode] == [
        "tokens.embedding", "pointwise.norm", "linear.linear", "pointwise.gated_act",
        "linear.linear", "pointwise.norm", "linear.linear",
    ]  # fmt: skip
    assert all(len(entry.kernels) == 1 for entry in decode)


def test_the_same_program_gives_the_same_bytes(program: Program, built: BuiltProgram) -> None:
    again = build(program, host_cpu())
    assert again.library == built.library
    assert again.plan == built.plan


ALONE = """
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
lib.gw_create.restype = ctypes.c_void_p
count, size = int(sys.argv[2]), 1 << 17
memory = ctypes.create_string_buffer(count * size + 64)
start = ctypes.addressof(memory) + -ctypes.addressof(memory) % 64
pointers = (ctypes.c_void_p * count)(*(start + size * i for i in range(count)))
ctypes.memmove(start, bytes((1, 0, 0, 0) * 4), 16)
pool = ctypes.c_void_p(lib.gw_create(2, ctypes.c_size_t(size), 2, 1, 100, 100))
print("answered", lib.gw_run(pool, lib.decode, pointers, None))
lib.gw_destroy(pool)
"""


def test_library_needs_nothing_but_libc(built: BuiltProgram, tmp_path: Path) -> None:
    (tmp_path / "step.so").write_bytes(built.library)
    command = [sys.executable, "-c", ALONE, str(tmp_path / "step.so"), str(len(PARAMETERS))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "answered 0\n", result.stderr


def test_blobs_are_shared_by_weight_and_layout() -> None:
    tensor = torch.randn(40, 8)
    weight, same = ConstantTensor.of(tensor), ConstantTensor.of(tensor)
    blobs = BlobTable()
    names = [blobs.add("table", weight, linear_float_layout(FLOAT32), read=32)]
    names.append(blobs.add("other", ConstantTensor.of(torch.randn(3)), dense()))
    names.append(blobs.add("head", same, linear_float_layout(FLOAT32)))
    names.append(blobs.add("table", weight, dense()))
    assert names == ["table", "other", "table", "table_1"]
    assert blobs.offsets() == {"other": 0, "table": 64, "table_1": 64 + 48 * 8 * 4}
    assert blobs.bytes_per_token == 12 + 48 * 8 * 4 + 40 * 8 * 4
    assert sum(len(piece) for piece in blobs.chunks()) == blobs.bytes


def test_large_weights_are_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphwright.backends import blobs as module

    table = BlobTable()
    table.add(
        "w",
        ConstantTensor.of(torch.randn(100, 10, dtype=torch.bfloat16)),
        linear_float_layout(FLOAT32),
    )
    whole = b"".join(table.chunks())
    monkeypatch.setattr(module, "PIECE", 320)
    pieces = list(table.chunks())
    assert len(pieces) == 5 and b"".join(pieces) == whole


def test_two_kernels_of_one_name_are_an_error(built: BuiltProgram) -> None:
    one, other = built.phases["decode"][0], built.phases["decode"][1]
    impostor = replace(other, kernel=replace(other.kernel, name=one.kernel.name))
    with pytest.raises(BackendError, match=f"different kernels are called '{one.kernel.name}'"):
        kernels_of({"decode": [one, impostor]})


# ---- the registry


def test_registration_mistakes_are_errors() -> None:
    def good(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
        return ()

    with pytest.raises(BackendError, match=r"aten.add.Tensor is no gw op"):
        lowering(aten.add.Tensor)
    with pytest.raises(BackendError, match="is no gw op"):
        lowering(gw.linear)
    with pytest.raises(BackendError, match=r"would never lower .*good' takes every node"):
        own: Registry[LoweringContext, Phase] = Registry("this CPU")
        own.lowering(gw.attention.default)(good)
        own.lowering(gw.attention.default)(good)
    with pytest.raises(BackendError, match=r"takes \('node',\); a lowering takes"):
        lowering(gw.attention.default)(lambda node: ())  # type: ignore[misc, arg-type]
    assert not lowerings_of(gw.attention.default)


def test_what_nobody_lowers_is_named_with_the_reasons() -> None:
    def model(tokens: Any, table: Any, weight: Any) -> Any:
        x = gw.embedding.default(table, tokens)
        return gw.linear.default(aten.unsqueeze.default(x, 1), weight)

    table, weight = torch.randn(9, 8), torch.randn(16, 8)
    program = planned(model, tokens=TOKENS, table=table, weight=weight)
    node = program.output
    node.args = (node.args[0], program.add_weight("odd", ConstantTensor.of(torch.randn(16, 4))))
    with pytest.raises(BackendError) as error:
        build(program, host_cpu())
    assert str(error.value) == (
        "a step of 'decode' cannot be lowered for this CPU:\n"
        "  'linear_default' (gw.linear.default): linear.linear: a row of 'unsqueeze_default' has "
        "8 elements, not 4."
    )


def test_an_unplanned_program_is_refused() -> None:
    weights: dict[str, Any] = feed_forward_weights()
    program = build_program(feed_forward, tokens=TOKENS, **weights)
    with pytest.raises(BackendError, match="level 'normalized', not 'planned'"):
        build(program, host_cpu())


# ---- the linker


def test_linker_is_found_or_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("graphwright.backends.tvm.link.find_spec", lambda name: True)
    assert find_linker()[1:] == ["-m", "ziglang", "cc"]
    assert find_linker("aarch64-linux-gnu")[-2:] == ["-target", "aarch64-linux-gnu"]
    monkeypatch.setattr("graphwright.backends.tvm.link.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"install a C compiler or `pip install ziglang`"):
        find_linker()


def test_a_failed_link_repeats_the_linkers_words(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"linking failed: .*missing.o"):
        link([tmp_path / "missing.o"], tmp_path / "x.so")


def test_no_sampled_row_leaves_the_logits_alone(tmp_path: Path) -> None:
    def model(tokens: Any, table: Any, head: Any) -> Any:
        return gw.linear.default(gw.embedding.default(table, tokens), head)

    weights = {"table": torch.randn(9, 8), "head": torch.randn(20, 8)}
    program = build_program(model, level=Level.QUANTIZED, tokens=TOKENS, **weights)
    chosen = program.add_input("sample_rows", ["R"], torch.int32)
    head = program.output
    x = program.call(head, gw.select_rows.default, head.args[0], chosen)
    head.args = (x, head.args[1])
    program.infer(head)
    run_passes(program, [PlanMemory(chunk=40)], PassContext())
    compiled = CompiledProgram(build(program, host_cpu()), tmp_path)
    compiled.step([(0, [1, 2, 3])], rows=[])
    want = weights["table"][[2, 0]] @ weights["head"].T
    check_close(compiled.step([(0, [1, 0, 2])], rows=[2, 1]), want)
    assert np.isfinite(compiled.weights.view(np.float32)).all()
