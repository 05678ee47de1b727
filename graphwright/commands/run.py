"""`graphwright run`: prompts in, text out, and how fast that was."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from graphwright.commands.options import (
    adapter_option,
    batch_invariant_option,
    engine_options,
    parse_ids,
    sampling_options,
    speculate_option,
)
from graphwright.commands.text_file import decoded

if TYPE_CHECKING:
    from graphwright.runtime.engine import Engine
    from graphwright.runtime.grammar import Grammar
    from graphwright.runtime.request import Output
    from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["command"]


@click.command("run", short_help="Complete prompts with a compiled model.")
@click.argument("artifact")
@click.option("--prompt", "prompts", multiple=True, help="A text to complete; repeat for several.")
@click.option("--prompt-ids", "id_lists", multiple=True, callback=parse_ids,
              help="Token ids such as 1,2,3; repeat for several. Needs no tokenizer.")  # fmt: skip
@sampling_options
@engine_options
@speculate_option
@adapter_option
@batch_invariant_option
@click.option("--json-schema", type=click.File("rb"), metavar="FILE",
              help="Answers are JSON of the schema in this file.")  # fmt: skip
@click.option("--regex", metavar="PATTERN", help="Answers match this regular expression.")
@click.option("--grammar", "context_free", type=click.File("rb"), metavar="FILE",
              help="Answers are words of this grammar, in Lark's notation or GBNF.")  # fmt: skip
@click.option("--logprobs", type=int, metavar="N",
              help="With --json: log probabilities, also of the N likeliest tokens.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option("--no-stream", is_flag=True, help="Print the text when it is complete.")
def command(
    artifact: str,
    prompts: tuple[str, ...],
    id_lists: tuple[list[int], ...],
    sampling: dict[str, Any],
    options: dict[str, Any],
    speculate: str | None,
    adapter: str | None,
    batch_invariant: bool,
    json_schema: BinaryIO | None,
    regex: str | None,
    context_free: BinaryIO | None,
    logprobs: int | None,
    as_json: bool,
    no_stream: bool,
) -> None:
    """Complete every --prompt and --prompt-ids with the compiled model ARTIFACT.

    Text goes to stdout as it appears, figures to stderr.
    """
    requests = [*prompts, *id_lists]
    if not requests:
        raise click.UsageError("nothing to complete: give --prompt TEXT or --prompt-ids 1,2,3.")
    if logprobs is not None and not as_json:
        raise click.UsageError("--logprobs are part of the JSON object: give --json, too.")
    grammar = _grammar(json_schema, regex, context_free)
    from graphwright.runtime.engine import Engine
    from graphwright.runtime.sampling_params import SamplingParams
    from graphwright.runtime.statistics import process_seconds

    params = SamplingParams(**sampling, logprobs=logprobs, grammar=grammar)
    import_seconds = process_seconds()
    options["max_sequences"] = min(8, len(requests))
    engine = Engine(
        artifact, adapter=adapter, speculate=speculate, batch_invariant=batch_invariant, **options
    )
    live = len(requests) == 1 and not (as_json or no_stream)
    outputs, figures = _complete(engine, requests, params, live)
    figures = {"import_s": round(import_seconds, 4), **figures}
    if speculate is not None:
        figures |= engine.statistics.speculation()
    if as_json:
        click.echo(json.dumps({"outputs": [_as_json(each) for each in outputs], **figures}))
        return
    if live:
        click.echo()
    else:
        for number, output in enumerate(outputs):
            if len(outputs) > 1:
                click.echo(f"--- prompt {number + 1}")
            click.echo(output.text if engine.tokenizer else _ids(output.token_ids))
    click.echo(_line(figures, sum(len(each.token_ids) for each in outputs)), err=True)
    wanted = params.max_tokens or 0
    if any(e.finish_reason == "length" and len(e.token_ids) < wanted for e in outputs):
        limit = engine.plan.max_context or "any number"
        click.echo(
            f"the context of {engine.context} tokens is full; --context takes up to {limit}",
            err=True,
        )


def _grammar(
    json_schema: BinaryIO | None, regex: str | None, context_free: BinaryIO | None
) -> Grammar | None:
    from graphwright.runtime.grammar import Grammar

    asked = [each for each in (json_schema, regex, context_free) if each is not None]
    if len(asked) > 1:
        raise click.UsageError("give one of --json-schema, --regex and --grammar.")
    if regex is not None:
        return Grammar.regex(regex)
    if json_schema is not None:
        return Grammar.json_schema(decoded(json_schema))
    return None if context_free is None else Grammar.context_free(decoded(context_free))


def _complete(
    engine: Engine, requests: list[Any], params: SamplingParams, live: bool
) -> tuple[list[Output], dict[str, float]]:
    import time

    from graphwright.runtime.statistics import peak_rss_mb, process_seconds

    start = time.perf_counter()
    first: dict[str, float] = {}

    def on_piece(_: int, piece: Any) -> None:
        if not first:
            first["ttft_s"] = time.perf_counter() - start
            first["start_to_first_token_s"] = process_seconds()
        if live:
            sys.stdout.write(piece.text if engine.tokenizer else _ids(piece.token_ids) + " ")
            sys.stdout.flush()

    outputs = engine.generate(requests, params, on_piece=on_piece)
    figures = {
        "load_s": engine.load_seconds,
        **first,
        "prefill_tps": engine.statistics.prefill_tps,
        "decode_tps": engine.statistics.decode_tps,
        "peak_rss_mb": peak_rss_mb(),
    }
    return outputs, {name: round(value, 4) for name, value in figures.items()}


def _as_json(output: Output) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": output.text,
        "token_ids": output.token_ids,
        "prompt_tokens": output.prompt_tokens,
        "finish_reason": output.finish_reason,
    }
    if output.logprobs is not None:
        found["logprobs"] = [
            {"logprob": each.logprob, "top": dict(each.top)} for each in output.logprobs
        ]
    return found


def _ids(token_ids: Any) -> str:
    return " ".join(map(str, token_ids))


def _line(figures: dict[str, float], tokens: int) -> str:
    text = (
        "{tokens} tokens; import {import_s:.2f} s, load {load_s:.2f} s, first token {ttft_s:.3f} s "
        "({start_to_first_token_s:.2f} s from process start); prefill {prefill_tps:.0f} tokens/s, "
        "decode {decode_tps:.1f} tokens/s; peak memory {peak_rss_mb:.0f} MB"
    )
    if figures.get("drafted_tokens") == 0:
        text += "; no tokens were guessed, as none seemed worth it"
    elif "drafted_tokens" in figures:
        text += (
            "; {accepted_tokens} of {drafted_tokens} guessed tokens accepted, "
            "{tokens_per_step:.2f} tokens a step, guessing took {draft_share:.0%} of decoding"
        )
    return text.format(tokens=tokens, **figures)
