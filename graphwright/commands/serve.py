"""`graphwright serve`: the OpenAI API over a compiled model."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from graphwright.commands.dependencies import require_serving
from graphwright.commands.options import (
    batch_invariant_option,
    engine_options,
    snapshots_option,
    speculate_option,
)

__all__ = ["command"]


@click.command("serve", short_help="Serve a compiled model by the OpenAI API.")
@click.argument("artifact")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535),
              help="0 takes a free one.")  # fmt: skip
@click.option("--api-key", envvar="GRAPHWRIGHT_API_KEY",
              help="What clients must send; default: GRAPHWRIGHT_API_KEY, else none.")  # fmt: skip
@click.option("--served-model-name", help="What the model is called (default: the file's name).")
@click.option("--max-sequences", default=8, show_default=True,
              help="Sequences that run together; memory for each is taken at start.")  # fmt: skip
@click.option("--queue", default=64, show_default=True, type=click.IntRange(0),
              help="Sequences that may wait; more are answered by 503.")  # fmt: skip
@click.option("--grace", default=30, show_default=True, type=click.IntRange(1),
              help="Seconds that running requests have to end after a signal.")  # fmt: skip
@click.option("--prefix-cache/--no-prefix-cache", default=None,
              help="Reuse what was computed of prompts that begin alike (default, but for "
              "--batch-invariant).")  # fmt: skip
@snapshots_option
@engine_options
@speculate_option
@batch_invariant_option
def command(
    artifact: str,
    host: str,
    port: int,
    api_key: str | None,
    served_model_name: str | None,
    max_sequences: int,
    queue: int,
    grace: int,
    prefix_cache: bool | None,
    snapshots: int | None,
    options: dict[str, Any],
    speculate: str | None,
    batch_invariant: bool,
) -> None:
    """Serve the compiled model ARTIFACT over HTTP until SIGINT or SIGTERM; see docs/server.md.

    Endpoints: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /health,
    /metrics, /version.
    """
    require_serving("serve")
    from graphwright.runtime.engine import Engine
    from graphwright.runtime.server.app import make_app
    from graphwright.runtime.server.listen import bind, serve

    if api_key == "":
        raise click.UsageError("the API key is empty: leave --api-key out, or give one.")
    with bind(host, port) as listener:
        name = served_model_name or Path(artifact).stem
        app, engine = make_app(
            lambda: Engine(
                artifact,
                max_sequences=max_sequences,
                prefix_cache=not batch_invariant if prefix_cache is None else prefix_cache,
                snapshots=snapshots,
                speculate=speculate,
                batch_invariant=batch_invariant,
                **options,
            ),
            name=name,
            queue=queue,
            api_key=api_key,
        )
        address, bound = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        if api_key is None and not ip_address(address.partition("%")[0]).is_loopback:
            click.echo(f"{shown} is open to other machines, and no --api-key is set", err=True)

        def on_ready() -> None:
            click.echo(
                f"serving '{name}' at http://{shown}:{bound}/v1, up to {max_sequences} sequences "
                f"of {engine.context} tokens at a time",
                err=True,
            )

        def on_signal() -> None:
            click.echo("ending: running requests are completed; again to end now", err=True)

        serve(app, listener, grace=grace, on_ready=on_ready, on_signal=on_signal)
