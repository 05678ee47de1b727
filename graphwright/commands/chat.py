"""`graphwright chat`: a conversation in the terminal, or one line of a pipe a turn."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from graphwright.commands.dependencies import require_serving
from graphwright.commands.options import (
    adapter_option,
    engine_options,
    sampling_options,
    speculate_option,
)

if TYPE_CHECKING:
    from graphwright.runtime.conversation import Conversation
    from graphwright.runtime.engine import Engine

__all__ = ["command"]

_HINT = "/reset forgets the conversation, Control-C stops an answer, /exit or Control-D leaves"


@click.command("chat", short_help="Talk with a compiled model in the terminal.")
@click.argument("artifact")
@click.option("--system", help="What the model is told before the conversation.")
@sampling_options
@engine_options
@speculate_option
@adapter_option
def command(
    artifact: str, system: str | None, sampling: dict[str, Any], options: dict[str, Any],
    speculate: str | None, adapter: str | None,
) -> None:  # fmt: skip
    """Talk with the compiled model ARTIFACT by its own chat template.

    A terminal asks for each turn; of a pipe, each line is one. Answers go to stdout as they appear,
    as long as the context holds, unless --max-tokens or the model sets a limit.
    """
    require_serving("chat")
    from graphwright.runtime.artifact import Artifact
    from graphwright.runtime.chat_template import read_chat_template
    from graphwright.runtime.conversation import Conversation
    from graphwright.runtime.engine import Engine
    from graphwright.runtime.sampling_params import SamplingParams

    params = SamplingParams(**sampling)
    opened = Artifact.open(artifact, verify=options.pop("verify"))
    template = read_chat_template(opened)
    if template is None:
        raise click.ClickException(
            f"the model in {artifact} came without a chat template; "
            f"complete texts with it instead: graphwright run {artifact} --prompt TEXT."
        )
    engine = Engine(
        opened, max_sequences=1, prefix_cache=True, adapter=adapter, speculate=speculate, **options
    )
    _talk(engine, Conversation(engine, template, params, system))


def _talk(engine: Engine, conversation: Conversation) -> None:
    from graphwright.runtime.errors import RequestError

    interactive = _is_interactive()
    if interactive:
        click.echo(_HINT, err=True)
    for text in _asked() if interactive else _lines():
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
            continue
        try:
            with _interruptible(interactive) as interrupted:
                for piece in conversation.say(text, interrupted):
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            click.echo()
        except RequestError as error:
            click.echo(f"graphwright: {error} /reset forgets the conversation.", err=True)
            continue
        if conversation.finish_reason == "length":
            click.echo(
                f"the answer was cut short, by --max-tokens or by the context of {engine.context} "
                "tokens; /reset forgets the conversation",
                err=True,
            )


def _is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _asked() -> Iterator[str]:
    """Turns typed at a prompt, until Control-D."""
    import readline  # noqa: F401  gives input() a line editor and a history

    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo(f"\n{_HINT}", err=True)
            continue
        if text:
            yield text


def _lines() -> Iterator[str]:
    """Turns from a pipe, one a line, empty ones left out."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # stray bytes: a sentence, no traceback
    for line in sys.stdin:
        if text := line.strip():
            yield text


@contextmanager
def _interruptible(interactive: bool) -> Iterator[Callable[[], bool]]:
    """Whether Control-C was pressed since; it does nothing else here, but ends a pipe's program.

    A handler and no KeyboardInterrupt: that could come between any two lines of the engine.
    """
    if not interactive:
        yield lambda: False
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
