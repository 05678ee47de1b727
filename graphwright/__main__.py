"""`graphwright`, `python -m graphwright`: exit code 0 fine, 1 failed with one sentence, 2 usage."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["console", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code. What users can cause shows no traceback."""
    import click

    from graphwright.cli import main_command

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character shows "?"
            stream.reconfigure(errors="replace")
    try:
        result = main_command.main(
            arguments if arguments is None else list(arguments),
            "graphwright",
            standalone_mode=False,
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:  # usage errors have exit code 2
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough; without this Python complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not isinstance(error, _reported()):
            raise
        print(f"graphwright: {error}", file=sys.stderr)
        return 1


def _reported() -> tuple[type[Exception], ...]:
    """Our own error types, without importing a room that has not been used."""
    modules = ("graphwright.runtime.errors", "graphwright.ir.errors")
    names = ("ArtifactError", "RequestError", "GraphwrightError")
    return tuple(
        getattr(sys.modules[module], name)
        for module in modules
        if module in sys.modules
        for name in names
        if hasattr(sys.modules[module], name)
    )


def console() -> NoReturn:
    """The command line as a process of its own."""
    from graphwright.process import leave

    leave(main())


if __name__ == "__main__":
    console()
