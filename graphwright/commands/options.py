"""Options that several verbs share: how to sample, and how to set up the engine."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import click

__all__ = [
    "adapter_option",
    "batch_invariant_option",
    "engine_options",
    "parse_adapters",
    "parse_ids",
    "parse_size",
    "sampling_options",
    "snapshots_option",
    "speculate_option",
]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[kmgt]i?)b", re.IGNORECASE)


def parse_size(_: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Bytes of "8GB", "512MiB". Usage error for anything else."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    size = round(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size < 1:
        raise click.BadParameter(
            f"'{text}' is no size such as 8GB, 1.5GiB or 500MB.", param=parameter
        )
    return size


def parse_adapters(
    _: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Each value "NAME=ADAPTER" as an item. Usage error for something else, or a name twice."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, place = text.partition("=")
        if not (name and equals and place):
            raise click.BadParameter(
                f"'{text}' is not NAME=ADAPTER, such as poet=path/to/adapter.", param=parameter
            )
        if name in found:
            raise click.BadParameter(f"two adapters are called '{name}'.", param=parameter)
        found[name] = place
    return found


def _parse_biases(
    _: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[int, float]:
    """Each value "ID=BIAS" as an item. Usage error when it is something else."""
    found = {}
    for text in values:
        token, _equals, bias = text.partition("=")
        try:
            found[int(token)] = float(bias)
        except ValueError:
            raise click.BadParameter(
                f"'{text}' is not a token id and its bias such as 50=-100.", param=parameter
            ) from None
    return found


_SAMPLING = (
    click.option("--max-tokens", "--max-new-tokens", "max_tokens", type=int,
                 help="Most tokens to generate (default: the model's, else 256; chat: no limit)."),
    click.option("--temperature", type=float, help="0 is greedy (default: the model's)."),
    click.option("--top-k", type=int, help="Sample from the k likeliest tokens; 0 for all."),
    click.option("--top-p", type=float, help="Sample from the likeliest tokens of this mass."),
    click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest."),
    click.option("--repetition-penalty", type=float, help="Above 1: fewer repetitions."),
    click.option("--presence-penalty", type=float,
                 help="Taken off the logits of generated tokens, -2 to 2."),
    click.option("--frequency-penalty", type=float,
                 help="The same for each time that a token was generated."),
    click.option("--logit-bias", multiple=True, metavar="ID=BIAS", callback=_parse_biases,
                 help="Added to a token's logit, -100 to 100; repeat for several."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, help="Text that ends the output; repeat for several."),
    click.option("--ignore-eos", is_flag=True, help="Go on after the end-of-text token."),
)  # fmt: skip
_ENGINE = (
    click.option("--threads", type=int, help="Default: GRAPHWRIGHT_NUM_THREADS, else the cores."),
    click.option(
        "--affinity",
        type=click.Choice(("free", "pinned")),
        help="Pin worker threads to CPUs (default: GRAPHWRIGHT_AFFINITY, else free).",
    ),
    click.option("--context", type=int, help="Tokens a sequence may have (default: up to 2048)."),
    click.option("--verify/--no-verify", default=True, help="Check the file's hashes first."),
    click.option(
        "--mmap/--no-mmap",
        default=True,
        help="Read weights in the mapped file, or from a copy (may decode faster).",
    ),
)
batch_invariant_option = click.option(
    "--batch-invariant", is_flag=True,
    help="Answers are bit for bit what they are alone, whatever else runs; for integer weights.",
)  # fmt: skip
snapshots_option = click.option(
    "--snapshots", type=click.IntRange(0), metavar="N",
    help="Of models with recurrent or convolution states: how many copies of those are kept for "
    "prompts that begin alike (default: 4 for each sequence).",
)  # fmt: skip
adapter_option = click.option(
    "--adapter", metavar="NAME", help="Answer with this one of the file's LoRA adapters."
)
speculate_option = click.option(
    "--speculate", metavar="lookup[:N]|draft:FILE[:N]",
    help="Guess the next tokens (N at most) from what the text says elsewhere, or by a smaller "
    "compiled model with the same tokens, and check several in one step.",
)  # fmt: skip


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the sampling options; the function gets them as the dictionary `sampling`."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
             "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop",
             "ignore_eos")  # fmt: skip
    return _gathered(function, "sampling", names, _SAMPLING)


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the engine's options; the function gets them as the dictionary `options`."""
    names = ("threads", "affinity", "context", "verify", "mmap")
    return _gathered(function, "options", names, _ENGINE)


def _gathered(
    function: Callable[..., Any],
    into: str,
    names: tuple[str, ...],
    options: tuple[Callable[..., Any], ...],
) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(**arguments: Any) -> Any:
        arguments[into] = {name: arguments.pop(name) for name in names}
        return function(**arguments)

    result: Callable[..., Any] = wrapper
    for option in reversed(options):
        result = option(result)
    return result


def parse_ids(
    _: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[list[int], ...]:
    """Each value "1,2,3" as a list of numbers. Usage error when it is something else."""
    lists = []
    for text in values:
        try:
            lists.append([int(each) for each in text.split(",") if each.strip()])
        except ValueError:
            raise click.BadParameter(
                f"'{text}' is not a list of token ids such as 1,2,3.", param=parameter
            ) from None
    return tuple(lists)
