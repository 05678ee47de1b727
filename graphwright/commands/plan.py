"""`graphwright plan`: what a model will take in memory, before a weight is read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphwright.commands.options import parse_adapters, parse_size, snapshots_option

if TYPE_CHECKING:
    from graphwright.compile_options import Progress
    from graphwright.inspector.memory_needs import Subject

__all__ = ["command"]

_MODEL = (
    "a checkpoint directory, ORG/NAME of one on the Hugging Face Hub, an ONNX or GGUF "
    "file, FILE.py:FUNCTION, or a compiled FILE.gw"
)
_OF_MODELS = ("quant", "target", "chunk", "kv_cache_dtype", "dtype", "attention", "adapters",
              "trust_remote_code")  # fmt: skip


@click.command("plan", short_help="Say what a model will take in memory, before it is loaded.")
@click.argument("model")
@click.option("--quant", help="Weights: f32, w8, w8g32, … (default: f32; of a GGUF file as it "
              "stores them).")  # fmt: skip
@click.option("--kv-cache-dtype", default="auto", show_default=True,
              type=click.Choice(["auto", "f32", "f16", "bf16", "fp8", "int8"]),
              help="How keys and values are kept (auto: f32).")  # fmt: skip
@click.option("--attention", metavar="MASK",
              help="What attention may see of what the model shows it: 'window(1024) | "
              "first(4)', 'window(1024) @ 0-3,5' in some layers.")  # fmt: skip
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=ADAPTER",
              callback=parse_adapters, help="With this LoRA adapter beside the weights; repeat for "
              "several.")  # fmt: skip
@click.option("--target", default="host", show_default=True,
              help="host, a CPU's name, several, or GPUs: cuda:sm_80,sm_90.")  # fmt: skip
@click.option("--dtype", default="auto", show_default=True,
              type=click.Choice(["auto", "f32", "bf16", "f16"]),
              help="Activations on a GPU (auto: bf16).")  # fmt: skip
@click.option("--chunk", default=512, show_default=True, type=click.IntRange(8, 8192),
              help="Most tokens of one prefill step.")  # fmt: skip
@click.option("--context", type=int, help="Tokens a sequence may have (default: up to 2048).")
@click.option("--max-sequences", default=8, show_default=True,
              help="Sequences that run together.")  # fmt: skip
@click.option("--prefix-cache/--no-prefix-cache", default=True,
              help="Count the snapshots of states that serve and chat take for prompts that begin "
              "alike (default).")  # fmt: skip
@snapshots_option
@click.option("--memory", metavar="SIZE", callback=parse_size,
              help="What there is, such as 8GB: exit code 1 if it does not fit.")  # fmt: skip
@click.option("--speculate", metavar="draft:FILE",
              help="Beside a draft model in this artifact, as `run` has it.")  # fmt: skip
@click.option("--trust-remote-code", is_flag=True, help="Run Python code from the checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, all sizes in bytes.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    context: int | None,
    max_sequences: int,
    prefix_cache: bool,
    snapshots: int | None,
    memory: int | None,
    speculate: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Say what MODEL will take in memory: the table of its engine, before there is one.

    MODEL: a checkpoint directory (its config.json is enough), or ORG/NAME of one on the Hugging
    Face Hub, an ONNX or GGUF file of a decoder, FILE.py:FUNCTION, or a compiled FILE.gw. No weight
    is read.
    """
    from graphwright.commands.model_argument import model_on_disk
    from graphwright.gguf_input import gguf_file

    if snapshots is not None and not prefix_cache:
        raise click.UsageError("without a prefix cache there are no snapshots: leave one of them.")
    name = model
    model = model_on_disk(model, _MODEL, code=options["trust_remote_code"], weights=False)
    path = Path(model)
    notes: list[str] = []
    if path.suffix == ".json":
        raise click.ClickException(f"give the directory in which '{model}' lies as config.json.")
    if path.is_file() and path.suffix != ".onnx" and gguf_file(path) is None:
        subject = _of_artifact(ctx, path)
    else:
        subject = _of_model(model, name, options, notes)
    from graphwright.inspector.memory_needs import memory_needs
    from graphwright.inspector.memory_needs_text import memory_needs_text

    draft = None if speculate is None else _draft_of(subject, speculate)
    needs = memory_needs(
        subject, max_sequences, context, memory, draft, snapshots if prefix_cache else 0
    )
    if as_json:
        click.echo(json.dumps({**needs, "notes": notes}))
    else:
        click.echo("\n".join([memory_needs_text(needs), *(f"note: {note}" for note in notes)]))
    return 1 if memory is not None and needs["memory"]["missing_bytes"] else 0


def _of_artifact(ctx: click.Context, path: Path) -> Subject:
    from graphwright.inspector.memory_needs import subject_of
    from graphwright.runtime.artifact import Artifact

    for name in _OF_MODELS:
        source = ctx.get_parameter_source(name)
        if source is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(
                f"--{name.removesuffix('s').replace('_', '-')} says how a model is to be compiled, "
                f"and {path} was compiled already: give the model, or leave it out."
            )
    try:
        return subject_of(Artifact.open(path, verify=False, any_cpu=True), str(path))
    except KeyError as error:
        raise click.ClickException(error.args[0]) from None


def _draft_of(subject: Subject, asked: str) -> Subject | None:
    """The draft model that is asked for; None where guesses come without one."""
    from graphwright.inspector.memory_needs import subject_of
    from graphwright.runtime.artifact import Artifact
    from graphwright.runtime.draft_artifact import check_goes_back
    from graphwright.runtime.plan import Plan
    from graphwright.runtime.speculation_options import SpeculationOptions

    plan, overlaps = Plan.from_json(dict(subject.content)), subject.counter_bytes is not None
    options = SpeculationOptions.parse(asked, plan, overlaps=overlaps)
    if options.draft is None:
        return None
    opened = Artifact.open(options.draft, verify=False, any_cpu=True)
    found = subject_of(opened, options.draft)
    check_goes_back(opened, Plan.from_json(dict(found.content)))
    return found


def _of_model(model: str, name: str, options: dict[str, Any], notes: list[str]) -> Subject:
    """A model as it would be compiled; what there is to say of it beside goes into `notes`.

    name: what the user calls it."""
    from graphwright.commands.dependencies import require_compiler
    from graphwright.commands.model_argument import ADAPTER, model_on_disk
    from graphwright.commands.user_module import build_user_module, is_user_module
    from graphwright.inspector.memory_needs import Subject
    from graphwright.process import without_collection

    require_compiler(options["target"])
    with without_collection():
        from graphwright.compile_options import CompileOptions
        from graphwright.gguf_input import chosen_recipe
        from graphwright.planner import plan_model
    trust, beside = options.pop("trust_remote_code"), options.pop("adapters")
    beside = {key: model_on_disk(each, ADAPTER, code=False) for key, each in beside.items()}
    given = build_user_module(model) if is_user_module(model) else Path(model)
    quant = chosen_recipe(given, options.pop("quant"), notes)
    asked = CompileOptions(quant, **options, check=False)
    with _shown() as progress:
        planned = plan_model(
            given, asked, adapters=beside, trust_remote_code=trust, progress=progress
        )
    if not planned.has_weights:
        notes.append(
            f"there are no weights in {model}; the table is that of the model in its config.json"
            if model == name
            else f"of {name} config.json alone was fetched; the table is that of the model in it"
        )
    plan = planned.plan
    return Subject(name, plan.content, plan.target, quant, plan.counter_bytes)


@contextmanager
def _shown() -> Iterator[Progress]:
    """What hears of the stages; while open, a terminal on stderr shows which one it is."""
    from graphwright.compile_options import Progress

    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console

    with Console(stderr=True).status("imports") as status:
        yield Progress(stage=status.update)
