"""The difference of two artifacts as text: topic by topic, only what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graphwright.inspector.layers import layerless
from graphwright.inspector.roofline import Machine, short_kernel

__all__ = ["difference_text", "graph_difference_text"]

_SHOWN = 40  # lines of the last graph's delta that are shown among everything else
_SIGNS = {"<": "-", ">": "+"}


def difference_text(found: Mapping[str, Any], machine: Machine) -> str:
    """`found` as difference.py makes it, of artifacts that are not equal."""
    lines: list[str] = []
    for title, part in (
        ("about", _values(found["about"])),
        ("options", _values(found["options"])),
        ("versions", _values(found["versions"])),
        ("passes", _passes(found["passes"])),
        ("graphs", _graphs(found["graphs"])),
        ("kernels", _kernels(found["kernels"])),
        ("predicted", _predicted(found["predicted"], machine)),
        ("memory", _values(found["memory"])),
        ("weights", _weights(found["weights"])),
        ("golden", _golden(found["golden"])),
        ("files", _files(found["files"])),
    ):
        body = list(part)
        if body:
            lines += [f"{title}:", *(f"  {line}" for line in body)]
    return "\n".join(lines)


def graph_difference_text(delta: Mapping[str, Any]) -> str:
    """The counts of one graph's delta, and its hunks."""
    return "\n".join([_counts(delta), *_hunks(delta)])


def _values(pairs: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    for name, (old, new) in pairs.items():
        yield f"{name:38} {_value(old)} → {_value(new)}{_change(old, new)}"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value) or "none"


def _change(old: Any, new: Any) -> str:
    numbers = [isinstance(each, (int, float)) and not isinstance(each, bool) for each in (old, new)]
    return f"   ({new / old:.2f} ×)" if all(numbers) and old and new else ""


def _passes(found: Mapping[str, Any]) -> Iterator[str]:
    if found["order"]:
        old, new = found["order"]
        yield f"only before: {', '.join(n for n in old if n not in new) or 'none'}"
        yield f"only after: {', '.join(n for n in new if n not in old) or 'none'}"
        if [n for n in old if n in new] != [n for n in new if n in old]:
            yield f"order: {', '.join(old)} → {', '.join(new)}"
    for name, changed in found["records"].items():
        said = []
        if "rewrites" in changed:
            said.append("rewrites {} → {}".format(*changed["rewrites"]))
        if "nodes_after" in changed:
            said.append("nodes left {} → {}".format(*changed["nodes_after"]))
        if "verified" in changed:
            said.append("error {} → {}".format(*map(_share, changed["verified"])))
        if said or "nodes_before" not in changed:
            yield f"{name:38} {', '.join(said)}".rstrip()
        for key, title in (("notes", "note"), ("misses", "left alone")):
            old, new = changed.get(key, [[], []])
            yield from (f"    - {title}: {each}" for each in old if each not in new)
            yield from (f"    + {title}: {each}" for each in new if each not in old)


def _share(value: float | None) -> str:
    return "not checked" if value is None else f"{value:.1%} of tolerance"


def _graphs(found: Mapping[str, Any]) -> Iterator[str]:
    stages = found["stages"]
    for name, delta in stages.items():
        yield f"after {name:32} {_counts(delta)}"
    last = found["last"]
    if last["equal"]:
        return
    if last["hunks"]:
        yield "the last one (the same change in several layers is shown once):"
    lines = list(_hunks(last))
    yield from lines[:_SHOWN]
    if len(lines) > _SHOWN:
        yield f"… and {len(lines) - _SHOWN} more lines: --graph last"


def _counts(delta: Mapping[str, Any]) -> str:
    said = [f"{delta[key]} {key}" for key in ("removed", "added", "changed", "moved") if delta[key]]
    if said:
        return ", ".join(said)
    return "the same graph" if delta["equal"] else "the same nodes, printed otherwise"


def _hunks(delta: Mapping[str, Any]) -> Iterator[str]:
    for times, rows in delta["hunks"]:
        yield f"@@ {times} times @@" if times > 1 else "@@"
        for sign, text in rows:
            head, *body = text.split("\n")
            yield f"{_SIGNS.get(sign, sign)} {head}"
            yield from (f"{_SIGNS.get(sign, sign)} {line}" for line in body)


def _kernels(found: Mapping[str, Any]) -> Iterator[str]:
    for entry, parts in found.items():
        if parts["lowerings"]:
            yield f"{entry}, lowerings:"
        yield from (_count(name, pair) for name, pair in parts["lowerings"].items())
        if parts["kernels"]:
            yield f"{entry}, kernels:"
        yield from (_count(short_kernel(n, 60), pair) for n, pair in parts["kernels"].items())


def _count(name: str, pair: Sequence[int | None]) -> str:
    return f"  {name:60} {pair[0] or 0:4d} → {pair[1] or 0}"


def _predicted(found: Mapping[str, Any], machine: Machine) -> Iterator[str]:
    for entry, (old, new) in found.items():
        sides = []
        for each in (old, new):
            sides.append(
                "no prediction" if each is None else
                f"{each['bytes'] / 1e6:.3f} MB, {each['operations'] / 1e6:.1f} MOP, "
                f"{1e3 * each['seconds']:.4f} ms"
            )  # fmt: skip
        load = old or new
        tokens = f"{load['tokens']} token{'s' if load['tokens'] > 1 else ''}"
        ratio = _change(old["seconds"], new["seconds"]) if old and new else ""
        yield f"{entry}, {tokens} after {load['before']}: {' → '.join(sides)}{ratio}"
    if found:
        yield (
            f"at {machine.bandwidth:g} GB/s, {machine.float32:g} GFLOP/s, {machine.int8:g} int8 "
            "GOP/s: --bandwidth and --gops say otherwise"
        )


def _weights(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    yield f"the same byte for byte: {found['same']}"
    for key, title in (("changed", "other bytes"), ("removed", "only before"),
                       ("added", "only after")):  # fmt: skip
        if found[key]:
            yield f"{title}: {_names(found[key])}"
    kinds: dict[str, list[str]] = {}
    for name, (old, new) in found["retyped"].items():
        kinds.setdefault(f"{_layout(old)} → {_layout(new)}", []).append(name)
    for kind, names in kinds.items():
        yield f"{kind}: {_names(names)}"


def _layout(kind: str) -> str:
    return kind.partition(",")[0]


def _names(names: Sequence[str]) -> str:
    """How many, and each once but for the number of its layer."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(layerless(name), []).append(name)
    shown = [same[0] if len(same) == 1 else f"{key} (×{len(same)})" for key, same in groups.items()]
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")


def _golden(found: Mapping[str, Any]) -> Iterator[str]:
    if "prompt" in found:
        if None in found["prompt"]:
            yield "one of them has none"
        else:
            yield "another prompt, so that the tokens after it say nothing of each other"
        return
    if "greedy" in found:
        old, new = (each or [] for each in found["greedy"])
        first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
                     min(len(old), len(new)))  # fmt: skip
        yield f"from token {first + 1} on: {_tail(old, first)} → {_tail(new, first)}"
    if "top" in found and all(found["top"]):
        pairs = list(zip(*found["top"], strict=False))
        if "greedy" in found:
            pairs = pairs[: first + 1]
        worst = max((abs(a - b) for a, b in pairs), default=0.0)
        yield f"the largest logit moves by up to {worst:.4f}, as long as the tokens agree"


def _tail(tokens: Sequence[int], first: int) -> str:
    shown = " ".join(map(str, tokens[first : first + 6]))
    return shown + (" …" if len(tokens) > first + 6 else "") or "none"


def _files(found: Mapping[str, Sequence[str | None]]) -> Iterator[str]:
    """Entries whose hashes differ; many of one folder are counted."""
    for title, chosen in (
        ("only before", [name for name, (_, new) in found.items() if new is None]),
        ("only after", [name for name, (old, _) in found.items() if old is None]),
        ("other bytes", [name for name, pair in found.items() if None not in pair]),
    ):
        folders: dict[str, list[str]] = {}
        for name in chosen:
            folders.setdefault(name.rpartition("/")[0], []).append(name)
        shown: list[str] = []
        for folder, names in folders.items():
            shown += names if not folder or len(names) < 4 else [f"{len(names)} of {folder}/"]
        if shown:
            yield f"{title}: {', '.join(shown)}"
