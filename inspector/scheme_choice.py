"""The schemes that a compiler chose for the weights of an artifact, and on what evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphwright.inspector.text import Readable, read_json

__all__ = ["scheme_choice", "scheme_table"]

_BAR = 40


def scheme_choice(artifact: Readable) -> dict[str, Any]:
    """What quant.json holds (ir/scheme_choice.py). Raises KeyError with a sentence where no schemes
    were chosen."""
    if "quant.json" not in artifact.names:
        quant = read_json(artifact, "options.json").get("quant", "?")
        raise KeyError(
            f"no schemes were chosen for the artifact, its recipe {quant} says them: compile with "
            "--quant auto."
        )
    found: dict[str, Any] = read_json(artifact, "quant.json")
    return found


def scheme_table(artifact: Readable) -> str:
    """Each weight with the loss of each scheme, what was tried, and what more or fewer bits come
    to. Raises KeyError as scheme_choice does."""
    choice = scheme_choice(artifact)
    origin = f" {choice['origin']}" if choice["origin"] else ""
    lines = [
        f"budget     {choice['budget']}",
        f"chosen     {choice['bits']:.2f} bits a weight, {choice['bytes']} bytes, of which a "
        f"decoded token reads {choice['read']}",
        f"measured   {choice['measured']:.4g} ± {choice['error']:.1g} nats a token, on "
        f"{choice['held_out']} held-out tokens{origin}",
        f"predicted  {choice['predicted']:.4g}, the sum of the chosen weights' losses on "
        f"{choice['tokens']} others",
        "",
        *_weights(choice["weights"]),
        "",
        *_trials(choice["trials"]),
        "",
        *_line(choice["line"], choice["bits"]),
    ]
    return "\n".join(lines)


def _weights(weights: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each weight and a column for each scheme; [ ] around what was chosen."""
    bits: dict[str, float] = {}
    for each in weights:
        for option in each["options"]:
            bits.setdefault(option["scheme"], option["bytes"] / each["elements"])
    schemes = sorted(bits, key=lambda scheme: bits[scheme])
    width = max(len(name) for name in ("weight", *(each["name"] for each in weights)))
    head = "".join(f"{scheme:>11}" for scheme in schemes)
    rows = ["nats a token that the model loses by one weight alone (=: none, the numbers stay; "
            "~: estimated; [ ]: chosen; *: said by the recipe)",
            f"{'weight':{width}} {'numbers':>11}{head}"]  # fmt: skip
    for each in weights:
        found = {option["scheme"]: option for option in each["options"]}
        cells = (_cell(found.get(scheme), each) for scheme in schemes)
        rows.append(f"{each['name']:{width}} {each['elements']:>11}{''.join(cells)}".rstrip())
    return rows


def _cell(option: Mapping[str, Any] | None, weight: Mapping[str, Any]) -> str:
    if option is None:
        return f"{'':>11}"
    number = "=" if option["how"] == "exact" else f"{option['kl']:.2g}"
    text = f"~{number}" if option["how"] == "estimated" else number
    if option["scheme"] == weight["scheme"]:
        text = f"*{text}" if weight["fixed"] else f"[{text}]"
    return f"{text:>11}"


def _trials(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = ["what was tried", f"{'bits':>7} {'predicted':>10} {'measured':>10} {'±':>8}"]
    for each in trials:
        rows.append(
            f"{each['bits']:7.3f} {each['predicted']:10.4g} {each['measured']:10.4g} "
            f"{each['error']:8.1g}  {'within the budget' if each['accepted'] else 'too much'}"
        )
    return rows


def _line(points: Sequence[Mapping[str, Any]], chosen: float) -> list[str]:
    """The predicted loss by bits, longer bars for larger losses; > is next to what was chosen."""
    most = max((each["kl"] for each in points), default=0.0) or 1.0
    nearest = min((abs(each["bits"] - chosen) for each in points), default=0.0)
    rows = ["the best choices, as predicted", f"  {'bits':>7} {'loss':>10}"]
    for each in points:
        mark = ">" if abs(each["bits"] - chosen) == nearest else " "
        bar = "█" * round(_BAR * each["kl"] / most)
        rows.append(f"{mark} {each['bits']:7.3f} {each['kl']:10.3g} {bar}".rstrip())
    return rows
