"""The table of what an engine will take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["memory_needs_text", "size_text"]

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def memory_needs_text(needs: Mapping[str, Any]) -> str:
    """What `memory_needs` found, a line for each kind of memory; nothing is rounded away in the
    sum, which is that of the bytes.
    """
    where = "the GPU's memory" if needs["where"] == "gpu" else "memory"
    lines = [
        f"{needs['model']}: {needs['quant']}, for {needs['target']}",
        f"an engine for {_sequences(needs)} of {needs['context']} tokens, in {where}:",
        "",
        *_weight_lines(needs),
        *_cache_lines(needs),
        *_arena_lines(needs),
        *_draft_lines(needs),
        _line("total", needs["total_bytes"], "taken once, when an engine starts"),
        _beside(needs),
    ]
    if "memory" in needs:
        lines += ["", *_fit_lines(needs)]
    return "\n".join(lines)


def size_text(size: float) -> str:
    """Bytes in a decimal unit, with three digits or more."""
    for unit, scale in _UNITS:
        if size >= scale:
            number = size / scale
            return f"{number:.2f} {unit}" if number < 100 else f"{number:.0f} {unit}"
    return f"{size:.0f} B"


def _line(name: str, size: float, text: str) -> str:
    return f"{name:16} {size_text(size):>9}   {text}".rstrip()


def _sequences(needs: Mapping[str, Any]) -> str:
    count = needs["max_sequences"]
    return "1 sequence" if count == 1 else f"{count} sequences"


def _weight_lines(needs: Mapping[str, Any]) -> Iterator[str]:
    weights = needs["weights"]
    read = f"one token reads {size_text(weights['bytes_per_token'])}"
    yield _line("weights", needs["planned"]["weights"], read)
    for row in weights["schemes"]:
        plural = "" if row["arrays"] == 1 else "s"
        of = "" if row["read"] is None else f", one token reads {size_text(row['read'])}"
        yield _line(f"  {row['scheme']}", row["bytes"], f"{row['arrays']} array{plural}{of}")


def _cache_lines(needs: Mapping[str, Any]) -> Iterator[str]:
    kv = needs["kv"]
    yield _line(
        "caches", needs["planned"]["kv"],
        f"{size_text(kv['bytes_per_sequence'])} a sequence, {size_text(kv['bytes_per_token'])} a "
        f"token, in blocks of {kv['block_size']} tokens",
    )  # fmt: skip
    for number, pool in enumerate(kv["pools"]):
        indent = "  "
        if len(kv["pools"]) > 1:
            kept = "those out of reach are given back" if pool["gives_back"] else "all are kept"
            each = f"{size_text(pool['bytes_per_sequence'])} a sequence; of its blocks {kept}"
            yield _line("  pool", pool["bytes"], each)
            indent = "    "
        for line in _pool_lines(kv, number):
            yield indent + line
    for each in kv["rolling"]:
        yield (
            f"  {each['count']} x the last {each['kept']} inputs of {each['channels']} channels, "
            f"{each['dtype']}, room for them in each block"
        )
    for each in kv["recurrent"]:
        yield (
            f"  {each['count']} x recurrent state: {each['size']} numbers, float32, once a sequence"
        )
    if kv["snapshots"]:
        yield (
            f"  {kv['snapshots']} x snapshot of a sequence's states, for prompts that begin alike: "
            f"{size_text(kv['snapshot_bytes'])} each"
        )


def _pool_lines(kv: Mapping[str, Any], number: int) -> Iterator[str]:
    """The caches in one pool."""
    gives_back = kv["pools"][number]["gives_back"]
    for each in (cache for cache in kv["caches"] if (cache["pool"] or 0) == number):
        first = f"the first {each['first']} and " if each["first"] else ""
        span = f"{first}the last {each['span']} tokens" if each["span"] else "all tokens"
        if each["chosen"]:
            span = f"{each['chosen']} tokens at the most, of their choice,"
        kept = "; blocks of others are kept" if each["span"] and not gives_back else ""
        yield (
            f"{each['count']} x keys and values: {_heads(each)} of {each['head_dim']} and "
            f"{each['value_dim']}, {each['dtype']}, {span} are read{kept}"
        )
    for each in (index for index in kv["indexes"] if (index["pool"] or 0) == number):
        size = f"{_heads(each)} of {each['head_dim']}, {each['dtype']}"
        yield f"{each['count']} x index keys: {size}, all are read"


def _heads(cache: Mapping[str, Any]) -> str:
    return "1 head" if cache["heads"] == 1 else f"{cache['heads']} heads"


def _arena_lines(needs: Mapping[str, Any]) -> Iterator[str]:
    planned = needs["planned"]
    entries = (
        f"{name} {size_text(each['bytes'])} (up to {each['max_tokens']} tokens)"
        for name, each in needs["arena"].items()
    )
    yield _line("arena", planned["arena"], ", ".join(entries))
    yield _line("logits", planned["logits"], f"{needs['rows']} rows of {needs['vocab_size']}")
    yield _line("batch", planned["batch"], "tokens, positions, block table of a step")
    if needs["where"] == "gpu":
        yield _line("choices", planned["choices"], "of each row: its token, and how it is drawn")
        yield _line("counters", planned["counters"], "of kernels that wait for each other")


def _draft_lines(needs: Mapping[str, Any]) -> Iterator[str]:
    draft = needs.get("draft")
    if draft is not None:
        names = {"weights": "weights", "kv": "caches", "arena": "arena"}
        parts = ", ".join(f"{names[each]} {size_text(draft[each])}" for each in names)
        yield _line("draft", needs["planned"]["draft"], f"{draft['model']}: {parts}")


def _beside(needs: Mapping[str, Any]) -> str:
    if needs["process_bytes"] is None:
        return "beside it        the driver's own memory and the kernels' code, not counted here"
    return _line("beside it, about", needs["process_bytes"], "for the process (an estimate)")


def _fit_lines(needs: Mapping[str, Any]) -> Iterator[str]:
    fit, asked = needs["memory"], f"{_sequences(needs)} of {needs['context']} tokens"
    memory = size_text(fit["bytes"])
    if fit["missing_bytes"]:
        yield f"{memory} do not hold {asked}: {size_text(fit['missing_bytes'])} are missing"
    else:
        yield f"{memory} hold {asked}, and {size_text(fit['left_bytes'])} are left"
    if fit["longest_context"] == 0:
        yield "not even one sequence of one block of tokens fits: the model is too large for it"
        return
    yield f"one sequence may have {_longest(needs)}"
    most, limit = fit["most_sequences"], fit["most_sequences_of_a_step"]
    of = f"of {needs['context']} tokens"
    if most == limit:
        yield f"{most} sequences {of} fit, as many as a step may take"
    else:
        yield f"{most or 'no'} sequence{'' if most == 1 else 's'} {of} fit{'s' * (most == 1)}"


def _longest(needs: Mapping[str, Any]) -> str:
    longest = needs["memory"]["longest_context"]
    if longest is None:
        return "any number of tokens"
    at_limit = longest == needs["max_context"]
    return f"{longest} tokens{', the most that the model takes' if at_limit else ''}"
