"""make triton-table: what each Triton kernel costs and how exact it is, into docs/triton.md.

Registers, spills and shared memory are what ptxas and Triton say, for the shapes of an 8B decoder.
Errors are those of tiny float32 models in the interpreter: of each step against the reference of
its op in the same program, as a share of the largest value; they hold what the steps before added.
Interpreting and compiling need a process each.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "triton.md"
MARK = "<!-- make triton-table writes below -->"
MODELS = ("llama", "mixtral")
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "backends")]


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps({"errors": errors, "costs": costs}[sys.argv[1]]()))
        return
    found = {}
    for part, interpret in (("errors", "1"), ("costs", "0")):
        environment = {**os.environ, "TRITON_INTERPRET": interpret}
        done = subprocess.run(
            [sys.executable, __file__, part],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        if done.returncode:
            sys.exit(done.stderr)
        found[part] = json.loads(done.stdout.splitlines()[-1])
    head, _, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(f"{head}{MARK}\n\n{table(found['errors'], found['costs'])}")


def table(errors: dict[str, float], costs: list[list[Any]]) -> str:
    """Markdown: a line for each kernel, its figures for each chip."""
    lines = [
        f"{time.strftime('%Y-%m-%d')}, triton {version('triton')}, torch {version('torch')}, "
        f"models {', '.join(MODELS)} for the errors.",
        "",
        "| kernel | shape | error | sm_80 registers / spills / shared | sm_90 |",
        "|---|---|---|---|---|",
    ]
    for stem, shape, *figures in costs:
        error = f"{errors[stem]:.1e}" if stem in errors else "–"
        cells = " | ".join(" / ".join(f"{each:,}" for each in one) for one in figures)
        lines.append(f"| {stem} | {shape} | {error} | {cells} |")
    return "\n".join(lines) + "\n"


def cases() -> Iterator[tuple[str, Any]]:
    """(shape, kernel): an 8B decoder in bfloat16, 64 sequences at most."""
    from graphwright.backends.triton.kernels.attention_decode import (
        combine_splits,
        decode_attention,
    )
    from graphwright.backends.triton.kernels.attention_prefill import prefill_attention
    from graphwright.backends.triton.kernels.attention_tile import AttentionShape
    from graphwright.backends.triton.kernels.embedding import embedding
    from graphwright.backends.triton.kernels.gated_act import gated_act
    from graphwright.backends.triton.kernels.linear import linear, tiles_for
    from graphwright.backends.triton.kernels.norms import norm
    from graphwright.backends.triton.kernels.rope import append_kv, rope
    from graphwright.backends.triton.kernels.routed_linear import routed_linear, routed_tiles
    from graphwright.backends.triton.kernels.select_rows import select_rows
    from graphwright.backends.triton.kernels.token_slots import token_slots
    from graphwright.backends.triton.kernels.top_k import top_k
    from graphwright.backends.triton.kernels.weight_format import WeightFormat
    from graphwright.backends.triton.kernels.weighted_sum import weighted_sum

    kind = "bfloat16"
    yield "4096", embedding(4096, weight=kind, dtype=kind)
    yield "4096", norm("rms_norm", 4096, x_stride=4096, weight="float32", eps=1e-5, dtype=kind)
    yield (
        "32 heads of 128",
        rope(32, 128, 128, x_stride=6144, angle_stride=128, interleaved=False, dtype=kind),
    )
    stride = 16 * 2 * 8 * 128
    yield (
        "8 heads of 128",
        append_kv(
            8, 128, 128, k_stride=1024, v_stride=6144, block_stride=stride, dtype=kind, cache=kind
        ),
    )
    yield "16 to a block", token_slots()
    for cache in (kind, "int8"):
        shape = AttentionShape(32, 8, 128, 128, 6144, stride, 128**-0.5, dtype=kind, cache=cache)
        yield f"32 / 8 heads of 128, {cache}", decode_attention(shape, 16)
        yield f"32 / 8 heads of 128, {cache}", prefill_attention(shape, tokens=512)
    yield "16 parts", combine_splits(shape, 16)
    for scheme in ("dense", "w8", "w4g128"):
        format = WeightFormat.dense(kind) if scheme == "dense" else WeightFormat.of(scheme)
        for rows in (1, 64, 512):
            tiles = tiles_for(rows, 4096, 4096, format, kind)
            yield (
                f"4096 x 4096, {scheme}, {rows} rows",
                linear(4096, 4096, format, tiles, x_stride=4096, dtype=kind, most=rows),
            )
    yield (
        "14336",
        gated_act(14336, gate_stride=28672, up_stride=28672, activation="silu", dtype=kind),
    )
    yield "2 of 8", top_k(8, 2, x_stride=8, dtype=kind)
    tiles = routed_tiles(128, 8, 4096, WeightFormat.dense(kind), kind)
    yield (
        "8 experts, 4096 x 4096",
        routed_linear(
            8,
            2,
            4096,
            4096,
            WeightFormat.dense(kind),
            tiles,
            x_stride=4096,
            shared=True,
            dtype=kind,
        ),
    )
    yield "2 slots", weighted_sum(2, 4096, y_stride=8192, weights_stride=2, dtype=kind)
    yield "4096", select_rows(4096, x_stride=4096, dtype=kind)


def costs() -> list[list[Any]]:
    """[kernel, shape, (registers, spilled bytes, shared bytes) of each chip]."""
    from graphwright.backends.triton.chips import chips_of
    from graphwright.backends.triton.cubin import compile_cubin

    found = []
    for shape, kernel in cases():
        aligned = frozenset(name for name, _ in kernel.pointers)
        made = [compile_cubin(kernel, chip, aligned) for chip in chips_of("cuda")]
        figures = [(each.registers, each.stack, each.shared) for each in made]
        found.append([stem_of(kernel.name), shape, *figures])
    return found


def errors() -> dict[str, float]:
    """The largest error of each kernel's results over the tiny models, by the kernel's stem."""
    worst: dict[str, float] = {}
    for name in MODELS:
        for stem, error in errors_of(name):
            worst[stem] = max(worst.get(stem, 0.0), error)
    return worst


def errors_of(name: str) -> Iterator[tuple[str, float]]:
    """A prefill of 20 tokens, step by step beside the references."""
    import torch
    from interpreted_program import InterpretedProgram
    from tiny_models import random_tokens, tiny_model
    from torch import fx

    from graphwright.backends.triton.build import GpuOptions, lower_program
    from graphwright.backends.triton.chips import CHIPS
    from graphwright.frontend.capture import capture_module
    from graphwright.ir.memory import results, steps
    from graphwright.ir.paging import PagedCache
    from graphwright.passes.base import run_passes
    from graphwright.passes.pipeline import PipelineOptions, pipeline

    program = capture_module(tiny_model(name))
    run_passes(program, pipeline(PipelineOptions(decode_tokens=4, chunk=24)))
    tokens = random_tokens(20, seed=1)
    cache = PagedCache(program)
    inputs = cache.inputs([(cache.start(), tokens)])

    class Recorder(fx.Interpreter):
        """Keeps what every step computes; weights come from the program's store."""

        def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
            return program.weights[str(target)].load()

        def run_node(self, n: fx.Node) -> Any:
            values[n.name] = value = super().run_node(n)
            return value

    values: dict[str, Any] = {}
    order = [node.target for node in program.graph.nodes if node.op == "placeholder"]
    Recorder(program.module, garbage_collect_values=False).run(*(inputs[str(n)] for n in order))
    lowered = lower_program(program, CHIPS[0], GpuOptions("f32"))
    last = {launch.step: launch for launch in lowered.bucket("prefill", 20, 20).launches}
    runner = InterpretedProgram(lowered)
    memory: dict[str, torch.Tensor] = {}

    def look(launch: Any, pointers: list[torch.Tensor]) -> None:
        if last[launch.step] is launch:
            memory.update({launch.step: [each.clone() for each in pointers]})

    runner.step([(0, tokens.tolist())], entry="prefill", observe=look)
    for step in steps(program.graph):
        wanted = values[step.name]
        wanted = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
        count = len(results(step))
        for got, want in zip(memory[step.name][-count:], wanted, strict=True):
            flat = got[: want.numel()].double()
            scale = max(float(want.double().abs().max()), 1e-30)
            error = float((flat - want.reshape(-1).double()).abs().max()) / scale
            yield stem_of(last[step.name].kernel.name), error


def stem_of(name: str) -> str:
    """The kind of a kernel, without what tells it from others of its kind."""
    return re.sub(r"_[0-9a-f]{16}.*", "", name)


if __name__ == "__main__":
    main()
