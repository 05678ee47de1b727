"""`graphwright diff`: what is different between two artifacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from graphwright.runtime.artifact import Artifact

__all__ = ["command"]


@click.command("diff", short_help="Say what is different between two artifacts.")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--graph", "stage", metavar="STAGE",
              help="Only the graph after a pass: its name or number, or 'last'.")  # fmt: skip
@click.option("--bandwidth", type=click.FloatRange(min=0, min_open=True), metavar="GB/S",
              help="What memory gives, for predicted times (default: 20).")  # fmt: skip
@click.option("--gops", nargs=2, type=click.FloatRange(min=0, min_open=True),
              metavar="FLOAT32 INT8",
              help="10^9 operations a second, for predicted times (default: 100 200).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    old: Path,
    new: Path,
    stage: str | None,
    bandwidth: float | None,
    gops: tuple[float, float] | None,
    as_json: bool,
) -> None:
    """Compare the artifacts OLD and NEW: options, passes, graphs, kernels, memory, weights, golden
    tokens. Exit code 0 when they are equal, 1 when they differ, 2 when they cannot be compared."""
    from graphwright.inspector.difference import difference, graph_difference
    from graphwright.inspector.difference_text import difference_text, graph_difference_text
    from graphwright.inspector.roofline import EXAMPLE

    opened = [_open(path) for path in (old, new)]
    machine = EXAMPLE.given(bandwidth, gops)
    if stage is not None:
        found = graph_difference(*(_graph(artifact, stage) for artifact in opened))
        text = graph_difference_text(found)
    else:
        try:
            found = difference(opened[0], opened[1], machine)
        except KeyError as error:
            raise _NotComparableError(error.args[0]) from None
        text = "" if found["equal"] else difference_text(found, machine)
    if as_json:
        click.echo(json.dumps(found))
    elif stage is None and found["equal"]:
        click.echo(f"{old} and {new} hold the same, by the hashes of all entries.")
    else:
        click.echo(f"--- {old}\n+++ {new}\n{text}")
    ctx.exit(0 if found["equal"] else 1)


def _graph(artifact: Artifact, stage: str) -> str:
    from graphwright.inspector.text import graph_text

    try:
        return graph_text(artifact, stage)
    except KeyError as error:
        raise click.UsageError(f"{artifact.path}: {error.args[0]}") from None


class _NotComparableError(click.ClickException):
    """What cannot be read is not different."""

    exit_code = 2


def _open(path: Path) -> Artifact:
    from graphwright.runtime.artifact import Artifact
    from graphwright.runtime.errors import ArtifactError

    try:
        return Artifact.open(path, any_cpu=True)
    except ArtifactError as error:
        raise _NotComparableError(str(error)) from None
