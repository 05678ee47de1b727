"""`graphwright eval`: the perplexity of a text file under a compiled model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from graphwright.commands.options import engine_options

__all__ = ["command"]


@click.command("eval", short_help="Measure a compiled model's perplexity on a text file.")
@click.argument("artifact")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--window", type=int, help="Tokens of one forward pass (default: the context).")
@click.option("--stride", type=int, help="Tokens scored a window (default: all but the first).")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    artifact: str,
    file: Path,
    window: int | None,
    stride: int | None,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Score the text FILE with ARTIFACT: mean negative log-likelihood (nats a token), perplexity.

    The text is cut into windows, each begun with the tokenizer's BOS if it adds one, and every
    token is scored once (without a BOS, all but the first).
    """
    from graphwright.runtime.engine import Engine
    from graphwright.runtime.errors import RequestError
    from graphwright.runtime.evaluate import evaluate_text

    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is not UTF-8 text: byte {error.start} is wrong.") from error
    engine = Engine(artifact, max_sequences=1, **options)
    with _Progress() as progress:
        result = evaluate_text(
            engine, text, window=window, stride=stride, on_progress=progress.update
        )
    if as_json:
        click.echo(json.dumps(vars(result)))
    else:
        click.echo(f"{result.tokens} tokens, nll {result.nll:.5f}, ppl {result.ppl:.4f}")


class _Progress:
    """A bar on stderr; nothing when that is not a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._done = 0

    def __enter__(self) -> _Progress:
        return self

    def update(self, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            self._bar = click.progressbar(length=total, label="tokens scored", file=sys.stderr)
        self._bar.update(done - self._done)
        self._done = done

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()
