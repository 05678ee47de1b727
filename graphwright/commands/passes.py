"""`graphwright passes`: the pipeline as it would run, pass by pass."""

from __future__ import annotations

import json
from typing import Any

import click

__all__ = ["command"]


@click.command("passes", short_help="List the passes of the pipeline, in order.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the passes in order, or describe the pass NAME."""
    from graphwright.commands.dependencies import require_compiler

    require_compiler()
    from graphwright.passes.pipeline import pipeline

    rows: list[dict[str, Any]] = [
        {
            "name": step.title(),
            "stage": step.stage.value,
            "exactness": step.exactness.value,
            "what": " ".join((type(step).__doc__ or "").split("\n\n")[0].split()),
            "description": (type(step).__doc__ or "").strip(),
        }
        for step in pipeline()
    ]
    if name is not None:
        rows = [row for row in rows if row["name"] == name]
        if not rows:
            known = ", ".join(step.title() for step in pipeline())
            raise click.UsageError(f"there is no pass '{name}'; there are: {known}.")
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif name is not None:
        click.echo("{name} ({stage}, {exactness})\n\n{description}".format(**rows[0]))
    else:
        stage = ""
        for row in rows:
            if row["stage"] != stage:
                stage = row["stage"]
                click.echo(f"{stage}:")
            click.echo(f"  {row['name']:34} {row['exactness']:14} {row['what']}")
