"""`graphwright eval`: the perplexity of a text file, and how far a model is from another one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphwright.commands.options import adapter_option, engine_options
from graphwright.commands.text_file import read_text

if TYPE_CHECKING:
    from graphwright.runtime.comparison import Comparison

__all__ = ["command"]


@click.command("eval", short_help="Measure a compiled model's perplexity on a text file.")
@click.argument("artifact")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--window", type=int, help="Tokens of one forward pass (default: the context).")
@click.option("--stride", type=int, help="Tokens scored a window (default: all but the first).")
@click.option(
    "--against", metavar="REFERENCE", help="Compare with this artifact: KL divergence and more."
)
@engine_options
@adapter_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    artifact: str,
    file: Path,
    window: int | None,
    stride: int | None,
    against: str | None,
    options: dict[str, Any],
    adapter: str | None,
    as_json: bool,
) -> None:
    """Score the text FILE with ARTIFACT: mean negative log-likelihood (nats a token), perplexity.

    The text is cut into windows, each begun with the tokenizer's BOS if it adds one, and every
    token is scored once (without a BOS, all but the first). --against reads the text with a second
    artifact, too, of the same tokenizer, and says how far ARTIFACT's distribution of the next token
    is from that one's, which is read without --adapter; what stands behind ± is the standard error.
    """
    from graphwright.runtime.comparison import compare_text
    from graphwright.runtime.engine import Engine
    from graphwright.runtime.evaluate import evaluate_text

    text = read_text(file)
    engine = Engine(artifact, max_sequences=1, adapter=adapter, **options)
    sizes: dict[str, Any] = {"window": window, "stride": stride}
    if against is not None:
        reference = Engine(against, max_sequences=1, **options)
        with _Progress() as progress:
            compared = compare_text(engine, reference, text, **sizes, on_progress=progress.update)
        click.echo(json.dumps(vars(compared)) if as_json else _table(compared))
        return
    with _Progress() as progress:
        result = evaluate_text(engine, text, **sizes, on_progress=progress.update)
    if as_json:
        click.echo(json.dumps(vars(result)))
    else:
        click.echo(f"{result.tokens} tokens, nll {result.nll:.5f}, ppl {result.ppl:.4f}")


def _table(found: Comparison) -> str:
    """One line a measure: its name, its value and standard error."""
    f = found
    reference_ppl_error = f.reference_ppl * f.reference_nll_error
    rows = [
        ("tokens", f"{f.tokens}"),
        ("nll", f"{f.nll:.5f} ± {f.nll_error:.5f}"),
        ("nll of the reference", f"{f.reference_nll:.5f} ± {f.reference_nll_error:.5f}"),
        ("ppl", f"{f.ppl:.4f} ± {f.ppl * f.nll_error:.4f}"),
        ("ppl of the reference", f"{f.reference_ppl:.4f} ± {reference_ppl_error:.4f}"),
        ("ppl ratio", f"{f.ppl_ratio:.5f} ± {f.ppl_ratio_error:.5f}"),
        ("KL divergence, mean", f"{f.kl_mean:.4g} ± {f.kl_mean_error:.2g} nats a token"),
        ("KL divergence, median", f"{f.kl_median:.4g}"),
        ("KL divergence, 90 %", f"{f.kl_p90:.4g}"),
        ("KL divergence, 99 %", f"{f.kl_p99:.4g}"),
        ("KL divergence, largest", f"{f.kl_max:.4g}"),
        ("same most likely token", f"{f.same_top:.3%} ± {f.same_top_error:.3%}"),
        ("Δp of the token, mean", f"{f.p_difference_mean:+.4%} ± {f.p_difference_mean_error:.4%}"),
        ("Δp of the token, RMS", f"{f.p_difference_rms:.4%} ± {f.p_difference_rms_error:.4%}"),
    ]
    return "\n".join(f"{name:24} {value}" for name, value in rows)


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
