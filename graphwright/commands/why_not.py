"""`graphwright why-not`: why a pass did not rewrite something."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["command"]


@click.command("why-not", short_help="Say what a pass left alone in an artifact, and why.")
@click.argument("name", metavar="PASS")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str, artifact: Path, as_json: bool) -> None:
    """Say what PASS left alone when ARTIFACT was compiled, node by node, and why.

    The log has reasons for what looks like the pass's target. What does not is not mentioned.
    """
    from graphwright.inspector.near_misses import near_misses, near_misses_text
    from graphwright.pass_descriptions import pass_descriptions
    from graphwright.runtime.artifact import Artifact

    try:
        found = near_misses(Artifact.open(artifact, any_cpu=True), name)
    except KeyError as error:
        raise click.UsageError(error.args[0]) from None
    described = pass_descriptions([name]).get(name, {})
    click.echo(json.dumps(found) if as_json else near_misses_text(found, described))
