"""`graphwright inspect`: look into an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["command"]


@click.command("inspect", short_help="Look into an artifact: passes, graphs, memory plan.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--passes", "what", flag_value="passes", help="The pass log.")
@click.option("--graph", "stage", metavar="STAGE",
              help="The graph after a pass: its name or number, or 'last'.")  # fmt: skip
@click.option("--memory", "what", flag_value="memory", help="The memory plan.")
@click.option("--ledger", "what", flag_value="ledger", help="Who lowered each node.")
@click.option("--all", "everything", is_flag=True, help="With --memory: every buffer.")
@click.option("--json", "as_json", is_flag=True, help="The raw data as JSON.")
def command(
    artifact: Path, what: str | None, stage: str | None, everything: bool, as_json: bool
) -> None:
    """Print a summary of ARTIFACT, or one view of it."""
    from graphwright import inspector
    from graphwright.runtime.artifact import Artifact

    opened = Artifact.open(artifact, any_cpu=True)
    if stage is not None:
        try:
            text = inspector.graph_text(opened, stage)
        except KeyError as error:
            raise click.UsageError(error.args[0]) from None
        click.echo(json.dumps({"stage": stage, "graph": text}) if as_json else text.rstrip())
        return
    entry = {"passes": "log.json", "memory": "plan.json", "ledger": "ledger.json"}
    if as_json:
        click.echo(opened.read(entry.get(what or "", "manifest.json")).decode())
    elif what == "passes":
        click.echo(inspector.pass_table(opened))
    elif what == "memory":
        click.echo(inspector.memory_table(opened, limit=None if everything else 16))
    elif what == "ledger":
        click.echo(inspector.ledger_table(opened))
    else:
        click.echo(inspector.summary(opened))
