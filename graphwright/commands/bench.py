"""`graphwright bench`: speed and memory of a compiled model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from graphwright.commands.options import adapter_option, engine_options, speculate_option

if TYPE_CHECKING:
    from graphwright.inspector import Machine
    from graphwright.runtime.engine import Engine

__all__ = ["command"]

_SPECULATION = (
    *((name, "tokens") for name in ("drafted_tokens", "accepted_tokens", "tokens_per_step")),
    ("draft_share", "of the time of decoding"),
)
_TRACED = 8
Found = TypeVar("Found")


@click.command("bench", short_help="Measure a compiled model's speed and memory.")
@click.argument("artifact")
@click.option("--prompt-len", default=64, show_default=True, help="Tokens of the random prompt.")
@click.option("--gen-len", default=64, show_default=True, help="Tokens to generate.")
@click.option("--reps", default=3, show_default=True, help="Repetitions after one to warm up.")
@click.option("--profile", "profiled", is_flag=True,
              help="Instead: measured and predicted time of each kernel and layer.")  # fmt: skip
@click.option("--trace", "trace_path", type=click.Path(path_type=Path, dir_okay=False),
              metavar="OUT", help="Instead: write what each thread does when, in one prefill step "
              f"and up to {_TRACED} decode steps, as JSON for Perfetto.")  # fmt: skip
@engine_options
@speculate_option
@adapter_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    artifact: str,
    prompt_len: int,
    gen_len: int,
    reps: int,
    profiled: bool,
    trace_path: Path | None,
    options: dict[str, Any],
    speculate: str | None,
    adapter: str | None,
    as_json: bool,
) -> None:
    """Measure ARTIFACT on one sequence: medians over the repetitions.

    With --speculate it says what came of guesses, but the text that follows a random prompt is no
    measure of that: it may repeat itself, or not, as no real text does.
    """
    options["adapter"] = adapter
    instead = "--profile" if profiled else None if trace_path is None else "--trace"
    if instead is not None and speculate is not None:
        raise click.UsageError(f"{instead} times steps of one token: leave --speculate out.")
    if profiled and trace_path is not None:
        raise click.UsageError("--profile and --trace are two runs: ask for one of them.")
    if profiled:
        click.echo(_profile(artifact, prompt_len, gen_len, options, as_json))
        return
    if trace_path is not None:
        steps = min(gen_len, _TRACED)
        click.echo(_trace(artifact, trace_path, prompt_len, steps, options, as_json))
        return
    from graphwright.runtime.benchmark import measure
    from graphwright.runtime.engine import Engine

    engine = Engine(artifact, max_sequences=1, speculate=speculate, **options)
    result = measure(engine, prompt_len, gen_len, reps)
    if as_json:
        click.echo(json.dumps(vars(result)))
        return
    for name, unit in (
        ("prefill_tps", "tokens/s"),
        ("decode_tps", "tokens/s"),
        ("ttft_s", "s"),
        ("load_s", "s"),
        ("peak_rss_mb", "MB"),
        ("artifact_mb", "MB"),
        ("weight_bytes_per_token", "bytes"),
        ("effective_gbps", "GB/s"),
        *_SPECULATION * (speculate is not None),
    ):
        click.echo(f"{name:24} {getattr(result, name):>14,} {unit}")
    click.echo(f"({prompt_len} + {gen_len} tokens, {reps} repetitions, {result.threads} threads)")


def _profile(
    artifact: str, prompt_len: int, gen_len: int, options: dict[str, Any], as_json: bool
) -> str:
    """Steps with clocks inside, beside what they should take."""
    from graphwright.inspector import profile_data, profile_table
    from graphwright.runtime.profile import profile

    engine = _cpu_engine(artifact, options, "--profile")
    facts = engine.artifact.json("phases.json")
    found, machine = _beside_machine(engine, lambda: profile(engine, prompt_len, gen_len))
    if as_json:
        return json.dumps({name: profile_data(facts, p, machine) for name, p in found.items()})
    return "\n\n".join(profile_table(facts, each, machine) for each in found.values())


def _trace(
    artifact: str, path: Path, prompt_len: int, steps: int, options: dict[str, Any], as_json: bool
) -> str:
    """Writes the trace; returns what there is to say of it."""
    from graphwright.inspector import trace_data
    from graphwright.runtime.errors import RequestError
    from graphwright.runtime.trace import trace

    engine = _cpu_engine(artifact, options, "--trace")
    facts = engine.artifact.json("phases.json")
    found, machine = _beside_machine(engine, lambda: trace(engine, prompt_len, steps))
    title = os.fsencode(engine.artifact.path.name).decode(errors="replace")
    data = trace_data(facts, found, machine, title)
    try:
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}.") from error
    events = len(data["traceEvents"])
    if as_json:
        said = {"trace": str(path), "events": events, "prompt_tokens": prompt_len,
                "decode_steps": steps, "threads": engine.threads}  # fmt: skip
        return json.dumps(said)
    counts = [(steps, "decode step"), (engine.threads, "thread")]
    ran, on = (f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts)
    return (
        f"{path}: a prefill step of {prompt_len} tokens and {ran} on {on}, {events} events; "
        "open it in https://ui.perfetto.dev or chrome://tracing"
    )


def _cpu_engine(artifact: str, options: dict[str, Any], option: str) -> Engine:
    from graphwright.runtime.artifact import Artifact
    from graphwright.runtime.cuda.program import LAUNCHES
    from graphwright.runtime.engine import Engine
    from graphwright.runtime.errors import RequestError

    opened = Artifact.open(artifact, verify=options["verify"])
    if LAUNCHES in opened:
        raise RequestError(
            f"{option} is for CPUs, whose steps can read a clock between kernels; {artifact} is "
            "for GPUs: a profiler such as Nsight Systems shows its launches."
        )
    return Engine(opened, max_sequences=1, **options)


def _beside_machine(engine: Engine, run: Callable[[], Found]) -> tuple[Found, Machine]:
    """What `run` returns, and what this machine gives: its memory's rate before and after."""
    from graphwright.inspector import Machine
    from graphwright.runtime.bandwidth import read_bandwidth
    from graphwright.runtime.cpu import cpu_features

    before = read_bandwidth(engine.threads)
    found = run()
    bandwidth = (before + read_bandwidth(engine.threads)) / 2
    return found, Machine.here(engine.threads, bandwidth, cpu_features())
