"""`graphwright verify`: is this file whole, and does its code say here what the reference said?"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

__all__ = ["command"]


@click.command("verify", short_help="Check an artifact's hashes and replay its golden tokens.")
@click.argument("artifact")
@click.option("--threads", type=int, help="Default: GRAPHWRIGHT_NUM_THREADS, else the cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(artifact: str, threads: int | None, as_json: bool) -> None:
    """Check every byte of ARTIFACT, then its golden tokens. Exit code 1 when they differ."""
    from graphwright.runtime.artifact import Artifact
    from graphwright.runtime.engine import Engine
    from graphwright.runtime.self_test import self_test

    engine = Engine(Artifact.open(artifact, again=True), max_sequences=1, threads=threads)
    result, target = self_test(engine), engine.artifact.variant().name
    if as_json:
        fields: dict[str, Any] = {**vars(result), "passed": result.passed, "target": target}
        click.echo(json.dumps(fields))
    elif result.passed:
        click.echo(
            f"{artifact}: all hashes match; {result.positions} golden positions agree in the code "
            f"for {target}, the worst logit is off by {result.worst:.2%} of the tolerance"
        )
    else:
        click.echo(
            f"{artifact}: all hashes match, but the code for {target} differs from the reference: "
            f"positions {list(result.wrong)}, worst logit {result.worst:.3g} times the tolerance"
        )
    if not result.passed:
        sys.exit(1)
