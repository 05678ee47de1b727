"""`graphwright bench`: speed and memory of a compiled model."""

from __future__ import annotations

import json
from typing import Any

import click

from graphwright.commands.options import engine_options, speculate_option

__all__ = ["command"]

_SPECULATION = tuple(
    (name, "tokens") for name in ("drafted_tokens", "accepted_tokens", "tokens_per_step")
)


@click.command("bench", short_help="Measure a compiled model's speed and memory.")
@click.argument("artifact")
@click.option("--prompt-len", default=64, show_default=True, help="Tokens of the random prompt.")
@click.option("--gen-len", default=64, show_default=True, help="Tokens to generate.")
@click.option("--reps", default=3, show_default=True, help="Repetitions after one to warm up.")
@click.option("--profile", "profiled", is_flag=True,
              help="Instead: measured and predicted time of each kernel and layer.")  # fmt: skip
@engine_options
@speculate_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    artifact: str,
    prompt_len: int,
    gen_len: int,
    reps: int,
    profiled: bool,
    options: dict[str, Any],
    speculate: str | None,
    as_json: bool,
) -> None:
    """Measure ARTIFACT on one sequence: medians over the repetitions.

    With --speculate it says what came of guesses, but the text that follows a random prompt is no
    measure of that: it may repeat itself, or not, as no real text does.
    """
    if profiled and speculate is not None:
        raise click.UsageError("--profile times steps of one token: leave --speculate out.")
    if profiled:
        click.echo(_profile(artifact, prompt_len, gen_len, options, as_json))
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
    """Steps with clocks inside, beside what this machine's memory gives before and after."""
    from graphwright.inspector import Machine, profile_data, profile_table
    from graphwright.runtime.bandwidth import read_bandwidth
    from graphwright.runtime.cpu import cpu_features
    from graphwright.runtime.engine import Engine
    from graphwright.runtime.profile import profile

    engine = Engine(artifact, max_sequences=1, **options)
    facts = engine.artifact.json("phases.json")
    before = read_bandwidth(engine.threads)
    found = profile(engine, prompt_len, gen_len)
    bandwidth = (before + read_bandwidth(engine.threads)) / 2
    machine = Machine.here(engine.threads, bandwidth, cpu_features())
    if as_json:
        return json.dumps({name: profile_data(facts, p, machine) for name, p in found.items()})
    return "\n\n".join(profile_table(facts, each, machine) for each in found.values())
