"""The command line: each verb is a module of graphwright/commands, imported when asked for."""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["VERBS", "main_command"]

# verb: what --help says about it. Its module is graphwright.commands.<verb>, - as _, and the click
# command there is called `command`.
VERBS = {
    "compile": "Turn a checkpoint into one file that runs without torch.",
    "plan": "Say what a model will take in memory, before it is loaded.",
    "run": "Complete prompts with a compiled model.",
    "chat": "Talk with a compiled model in the terminal.",
    "serve": "Serve a compiled model by the OpenAI API.",
    "bench": "Measure a compiled model's speed and memory.",
    "eval": "Measure a compiled model's perplexity on a text file.",
    "inspect": "Show passes, graphs and the memory plan of an artifact.",
    "diff": "Say what is different between two artifacts.",
    "why-not": "Say what a pass left alone in an artifact, and why.",
    "verify": "Check an artifact's hashes and replay its golden tokens.",
    "passes": "List the passes of the pipeline, in order.",
    "doctor": "Say what this machine has and what is missing.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = import_module(f"graphwright.commands.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from graphwright import __version__

        click.echo(f"graphwright {__version__}")
        ctx.exit()


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False,
              callback=_print_version, help="Print the version.")  # fmt: skip
def main_command() -> None:
    """Compile PyTorch decoders to native code, and run them without torch."""
