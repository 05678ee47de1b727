"""`graphwright inspect`: look into an artifact."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from graphwright.inspector import Machine
    from graphwright.runtime.artifact import Artifact

__all__ = ["command"]


@click.command("inspect", short_help="Look into an artifact: passes, graphs, memory plan.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--passes", "what", flag_value="passes", help="The pass log.")
@click.option("--graph", "stage", metavar="STAGE",
              help="The graph after a pass: its name or number, or 'last'.")  # fmt: skip
@click.option("--memory", "what", flag_value="memory", help="The memory plan.")
@click.option("--ledger", "what", flag_value="ledger", help="Who lowered each node.")
@click.option("--kernels", "what", flag_value="kernels",
              help="Bytes, operations, bound and predicted time of each kernel.")  # fmt: skip
@click.option("--tuning", "what", flag_value="tuning",
              help="Which kernels were tuned, and what it gained.")  # fmt: skip
@click.option("--quant", "what", flag_value="quant",
              help="With --quant auto compiled: each weight's schemes, losses, and what was "
              "chosen.")  # fmt: skip
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT",
              help="Write all of it as one page for a browser; it needs no network.")  # fmt: skip
@click.option("--bandwidth", type=click.FloatRange(min=0, min_open=True), metavar="GB/S",
              help="What memory gives, in --kernels (default: measured now) or at first "
              "in --html.")  # fmt: skip
@click.option("--gops", nargs=2, type=click.FloatRange(min=0, min_open=True),
              metavar="FLOAT32 INT8", help="10^9 operations a second, in --kernels (default: "
              "from the CPU's clock and instructions) or at first in --html.")  # fmt: skip
@click.option("--threads", type=int, help="With --kernels: threads of a step.")
@click.option("--position", default=128, show_default=True, type=click.IntRange(0),
              help="With --kernels: tokens before the decoded one.")  # fmt: skip
@click.option("--tokens", default=512, show_default=True, type=click.IntRange(1),
              help="With --kernels: tokens of the prefill step.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="With --memory: every buffer.")
@click.option("--json", "as_json", is_flag=True, help="The raw data as JSON.")
def command(
    artifact: Path,
    what: str | None,
    stage: str | None,
    page: Path | None,
    bandwidth: float | None,
    gops: tuple[float, float] | None,
    threads: int | None,
    position: int,
    tokens: int,
    everything: bool,
    as_json: bool,
) -> None:
    """Print a summary of ARTIFACT, or one view of it."""
    from graphwright import inspector
    from graphwright.runtime.artifact import Artifact

    if page is not None:
        if what or stage is not None or as_json:
            raise click.UsageError("--html holds every view: give it alone.")
        if page.exists() and artifact.exists() and page.samefile(artifact):
            raise click.UsageError(f"--html would write over {artifact}, which it reads.")
    opened = Artifact.open(artifact, any_cpu=True)
    if page is not None:
        _write_page(opened, page, bandwidth, gops)
        return
    if stage is not None:
        try:
            text = inspector.graph_text(opened, stage)
        except KeyError as error:
            raise click.UsageError(error.args[0]) from None
        click.echo(json.dumps({"stage": stage, "graph": text}) if as_json else text.rstrip())
        return
    if what == "kernels":
        loads = {"decode": inspector.Load(1, position), "prefill": inspector.Load(tokens, 0)}
        machine = _machine(bandwidth, gops, threads)
        try:
            if as_json:
                click.echo(json.dumps(inspector.kernel_data(opened, loads, machine)))
            else:
                click.echo(inspector.kernel_table(opened, loads, machine))
        except KeyError as error:
            raise click.ClickException(error.args[0]) from None
        return
    if what == "quant":
        try:
            text = inspector.scheme_table(opened)
        except KeyError as error:
            raise click.ClickException(error.args[0]) from None
        click.echo(json.dumps(inspector.scheme_choice(opened)) if as_json else text)
        return
    entry = {"passes": "log.json", "memory": "plan.json", "ledger": "ledger.json",
             "tuning": "tuning.json"}  # fmt: skip
    if what == "tuning" and "tuning.json" not in opened.names:
        raise click.ClickException("the artifact was not tuned: compile it with --tune.")
    if as_json:
        click.echo(opened.read(entry.get(what or "", "manifest.json")).decode())
    elif what == "passes":
        click.echo(inspector.pass_table(opened))
    elif what == "memory":
        click.echo(inspector.memory_table(opened, limit=None if everything else 16))
    elif what == "tuning":
        click.echo(inspector.tuning_table(opened))
    elif what == "ledger":
        click.echo(inspector.ledger_table(opened))
    else:
        click.echo(inspector.summary(opened))


def _write_page(
    opened: Artifact, path: Path, bandwidth: float | None, gops: tuple[float, float] | None
) -> None:
    from graphwright.inspector.page_html import page_html
    from graphwright.inspector.roofline import EXAMPLE
    from graphwright.pass_descriptions import pass_descriptions

    try:
        names = [row["name"] for row in opened.json("log.json")]
        machine = EXAMPLE.given(bandwidth, gops)
        title = os.fsencode(opened.path.name).decode(errors="replace")
        text = page_html(opened, title, pass_descriptions(names), machine)
    except KeyError as error:
        raise click.ClickException(error.args[0]) from None
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}.") from None
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB, for any browser")


def _machine(
    bandwidth: float | None, gops: tuple[float, float] | None, threads: int | None
) -> Machine:
    """The ceilings that were given, measured or derived."""
    from graphwright.inspector import Machine
    from graphwright.runtime.bandwidth import read_bandwidth
    from graphwright.runtime.cpu import cpu_features
    from graphwright.runtime.threads import choose_threads

    count = choose_threads(threads)
    found = read_bandwidth(count) if bandwidth is None else bandwidth
    return Machine(found, *gops) if gops else Machine.here(count, found, cpu_features())
