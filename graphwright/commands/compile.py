"""`graphwright compile`: a checkpoint directory, or a Python function, to one file."""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphwright.commands.options import parse_adapters, parse_size

if TYPE_CHECKING:
    from graphwright.compiler import Compiled, Progress
    from graphwright.ir.program import PassRecord

__all__ = ["command"]

TUNE_SECONDS = 60
_MODEL = (
    "a Hugging Face checkpoint on this disk, ORG/NAME of one on the Hub, an ONNX or GGUF file, or "
    "FILE.py:FUNCTION"
)


@click.command("compile", short_help="Turn a checkpoint into one file that runs without torch.")
@click.argument("model")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL-QUANT.gw here."
)
@click.option("--quant", help="Weights: f32, w8, w4g32, …; auto: the best for each (default: f32; "
              "of a GGUF file as it stores them).")  # fmt: skip
@click.option("--max-kl", type=click.FloatRange(min=0), metavar="NATS",
              help="With --quant auto: the fastest file that changes the model's distributions by "
              "no more (KL divergence, nats a token).")  # fmt: skip
@click.option("--bits", type=click.FloatRange(min=0, min_open=True), metavar="BITS",
              help="With --quant auto: the nearest to the model in so many bits a weight, in the "
              "mean.")  # fmt: skip
@click.option("--max-size", metavar="SIZE", callback=parse_size,
              help="With --quant auto: the nearest whose weights take no more, such as "
              "4GB.")  # fmt: skip
@click.option("--calibrate", metavar="TEXT",
              help="Round integer weights by the inputs that this UTF-8 file gives "
              "them; 'self': a text that the model writes.")  # fmt: skip
@click.option("--calibration-tokens", type=click.IntRange(2), metavar="N",
              help="With --calibrate: at most so many tokens of it "
              "(default: 16384).")  # fmt: skip
@click.option("--lora", multiple=True, metavar="ADAPTER",
              help="Merge this LoRA adapter into the weights: a directory, or ORG/NAME on the Hub; "
              "repeat for several.")  # fmt: skip
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=ADAPTER",
              callback=parse_adapters,
              help="Keep this LoRA adapter beside the weights: each request may choose one by its "
              "NAME; repeat for several.")  # fmt: skip
@click.option("--target", default="host", show_default=True,
              help="host, a CPU's name, several, or GPUs: cuda:sm_80,sm_90.")  # fmt: skip
@click.option("--chunk", default=512, show_default=True, type=click.IntRange(8, 8192),
              help="Most tokens of one prefill step.")  # fmt: skip
@click.option("--context", type=click.IntRange(1),
              help="Most tokens of a sequence (default: what the model was made for).")  # fmt: skip
@click.option("--dtype", default="auto", show_default=True,
              type=click.Choice(["auto", "f32", "bf16", "f16"]),
              help="Activations on a GPU (auto: bf16).")  # fmt: skip
@click.option("--kv-cache-dtype", default="auto", show_default=True,
              type=click.Choice(["auto", "f32", "f16", "bf16", "fp8", "int8"]),
              help="How keys and values are kept (auto: f32; fp8: on GPUs).")  # fmt: skip
@click.option("--attention", metavar="MASK",
              help="What attention may see of what the model shows it: 'window(1024) | "
              "first(4)', 'window(1024) @ 0-3,5' in some layers.")  # fmt: skip
@click.option("--check/--no-check", default=None,
              help="Compare the numbers after every pass (default: for small models).")  # fmt: skip
@click.option("--tune", is_flag=True,
              help="Time variants of the kernels here and take the fastest.")  # fmt: skip
@click.option("--tune-budget", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help=f"With --tune: how long (default: {TUNE_SECONDS}).")  # fmt: skip
@click.option("--trust-remote-code", is_flag=True, help="Run Python code from the checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def command(
    model: str,
    output: Path | None,
    quant: str | None,
    max_kl: float | None,
    bits: float | None,
    max_size: int | None,
    calibrate: str | None,
    calibration_tokens: int | None,
    lora: tuple[str, ...],
    adapters: dict[str, str],
    target: str,
    chunk: int,
    context: int | None,
    kv_cache_dtype: str,
    dtype: str,
    attention: str | None,
    check: bool | None,
    tune: bool,
    tune_budget: float | None,
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compile MODEL to one .gw file.

    MODEL: a Hugging Face checkpoint directory, or ORG/NAME of one on the Hub, an ONNX or GGUF file
    of a decoder, or FILE.py:FUNCTION.
    """
    from graphwright.commands.dependencies import require_compiler
    from graphwright.commands.model_argument import ADAPTER, default_output, model_on_disk
    from graphwright.commands.user_module import build_user_module, is_user_module
    from graphwright.process import without_collection

    if tune_budget is not None and not tune:
        raise click.UsageError("--tune-budget says how long to tune; it goes with --tune.")
    if calibration_tokens is not None and calibrate is None:
        raise click.UsageError("--calibration-tokens goes with --calibrate.")
    _check_budget(quant, {"--max-kl": max_kl, "--bits": bits, "--max-size": max_size})
    # calibration_tokens.SELF, before the seconds that its import takes
    if calibrate is not None and calibrate != "self" and not Path(calibrate).is_file():
        raise click.ClickException(f"there is no file '{calibrate}' to calibrate with.")
    on_disk = model_on_disk(model, _MODEL, code=trust_remote_code)
    merge = [model_on_disk(each, ADAPTER, code=False) for each in lora]
    beside = {name: model_on_disk(each, ADAPTER, code=False) for name, each in adapters.items()}
    output = output or default_output(model, on_disk, quant)
    require_compiler(target)
    with without_collection():
        from graphwright.calibration_tokens import CALIBRATION_TOKENS
        from graphwright.compiler import compile
    from graphwright.runtime.artifact import check_writable

    start = time.perf_counter()
    check_writable(output)
    with _Report(quiet or not sys.stderr.isatty()) as report:
        compiled = compile(
            build_user_module(on_disk) if is_user_module(on_disk) else Path(on_disk),
            quant=quant,
            max_kl=max_kl,
            bits=bits,
            max_size=max_size,
            target=target,
            chunk=chunk,
            context=context,
            kv_cache_dtype=kv_cache_dtype,
            dtype=dtype,
            attention=attention,
            check=check,
            calibration=calibrate,
            calibration_tokens=calibration_tokens or CALIBRATION_TOKENS,
            lora=merge,
            adapters=beside,
            tune=(tune_budget or TUNE_SECONDS) if tune else None,
            trust_remote_code=trust_remote_code,
            progress=report.progress,
        )
        compiled.save(output)
    seconds = time.perf_counter() - start
    if as_json:
        click.echo(json.dumps(_summary(compiled, output, seconds)))
        return
    click.echo(_text(compiled, output, seconds))


def _check_budget(quant: str | None, budgets: dict[str, float | None]) -> None:
    """A usage error unless `auto`, and nothing else, has one of the budgets."""
    given = [name for name, value in budgets.items() if value is not None]
    scheme = (quant or "").partition(":")[0]
    if scheme != "auto":  # auto_recipe.AUTO, before the seconds of its import
        if given:
            raise click.UsageError(f"{' and '.join(given)}: only with --quant auto.")
    elif len(given) != 1:
        raise click.UsageError(
            "--quant auto needs one of --max-kl (what may be lost), --bits and --max-size (how "
            f"small it is to be){': one alone' if given else ''}."
        )


def _summary(compiled: Compiled, output: Path, seconds: float) -> dict[str, Any]:
    plan = compiled.built.plan
    return {
        "artifact": str(output),
        "artifact_bytes": output.stat().st_size,
        "target": compiled.target,
        "quant": compiled.options.quant,
        "calibration": compiled.options.calibration,
        "choice": _choice(compiled),
        "seconds": round(seconds, 3),
        "stages": {name: round(value, 3) for name, value in compiled.seconds.items()},
        "weights_bytes": plan["weights"]["bytes"],
        "weight_bytes_per_token": plan["weights"]["bytes_per_token"],
        "arena_bytes": {name: entry["arena_bytes"] for name, entry in plan["entries"].items()},
        "passes": [vars(record) for record in compiled.program.log],
        "verified": all(r.verified is not None for r in compiled.program.log if r.rewrites),
        "tokenizer": "tokenizer.json" in compiled.files,
        "notes": compiled.notes,
        "tuned": {each.choice.key: each.finding.chosen for each in compiled.tuned},
    }


def _choice(compiled: Compiled) -> dict[str, Any] | None:
    """Of a choice of schemes what it comes to."""
    choice = compiled.program.choice
    if choice is None:
        return None
    names = ("budget", "bits", "bytes", "read", "predicted", "measured", "error", "held_out")
    return {name: getattr(choice, name) for name in names}


def _text(compiled: Compiled, output: Path, seconds: float) -> str:
    plan = compiled.built.plan
    stages = ", ".join(f"{name} {value:.1f} s" for name, value in compiled.seconds.items())
    checked = [r.verified for r in compiled.program.log if r.verified is not None]
    lines = [
        f"{output}: {output.stat().st_size / 1e6:.1f} MB, weights {compiled.options.quant} "
        f"{plan['weights']['bytes'] / 1e6:.1f} MB, for {compiled.target}",
        f"compiled in {seconds:.1f} s ({stages})",
    ]
    lines += [f"{record.name}: {note}" for record in compiled.program.log for note in record.notes]
    if checked:
        lines.append(
            f"{len(checked)} rewriting passes checked by numbers, those of a stage together"
        )
    if compiled.tuned:
        changed = sum(each.finding.chosen != each.choice.default for each in compiled.tuned)
        lines.append(f"{len(compiled.tuned)} choices tuned, {changed} of them changed: inspect "
                     "--tuning")  # fmt: skip
    lines += [f"note: {note}" for note in compiled.notes]
    prompt = "--prompt 'Once upon a time'"
    if "tokenizer.json" not in compiled.files:
        if not any("tokenizer.json" in note for note in compiled.notes):
            lines.append("note: there is no tokenizer.json beside the model; prompts are token ids")
        prompt = "--prompt-ids 1,2,3"
    lines.append(f"next: graphwright run {output} {prompt}")
    return "\n".join(lines)


class _Report(AbstractContextManager["_Report"]):
    """Stages, passes and packed bytes on stderr; nothing when `silent`."""

    def __init__(self, silent: bool) -> None:
        from graphwright.compiler import Progress

        self._silent = silent
        self._bar: Any = nullcontext()
        self._task: Any = None
        self.progress: Progress = (
            Progress()
            if silent
            else Progress(self._stage, self._record, self._packed, self._tuning, self._within_pass)
        )

    def __enter__(self) -> _Report:
        if not self._silent:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn(),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._silent:
            self._bar.stop()

    def _stage(self, name: str) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=None)

    def _record(self, record: PassRecord) -> None:
        self._bar.console.print(pass_line(record), highlight=False)

    def _tuning(self, share: float, choice: str) -> None:
        text = f"tuning {choice}" if choice else "tuning"
        self._bar.update(self._task, total=1.0, completed=share, description=text)

    def _within_pass(self, share: float | None, what: str) -> None:
        if share == 0:  # what is to come, before it begins
            self._bar.console.print(f"  {what}", highlight=False)
            return
        total = None if share is None else 1.0
        self._bar.update(self._task, total=total, completed=share or 0, description=what)

    def _packed(self, done: int, total: int) -> None:
        self._bar.update(self._task, total=total, completed=done)


def pass_line(record: PassRecord) -> str:
    """One pass in under 80 columns: rewrites, nodes, time, error as a share of the tolerance."""
    checked = "" if record.verified is None else f"  error {record.verified:.0%}"
    return (
        f"  {record.name:31} {record.rewrites:4d} x {record.nodes_before:5d} -> "
        f"{record.nodes_after:<5d} {record.seconds * 1e3:6.0f} ms{checked}"
    )
