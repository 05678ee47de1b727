"""An artifact as text: summary, pass log, graph at a stage, memory plan, ledger."""

from __future__ import annotations

import json
from typing import Any, Protocol

from graphwright.runtime.cpu import cpu_features
from graphwright.runtime.variants import best_variant, read_variants

__all__ = ["Readable", "graph_text", "ledger_table", "memory_table", "pass_table", "read_json",
           "summary"]  # fmt: skip


class Readable(Protocol):
    """What the views need of an artifact: its entries by name."""

    @property
    def names(self) -> tuple[str, ...]:
        """All entries."""
        ...

    def read(self, name: str) -> bytes:
        """One entry."""
        ...


def read_json(artifact: Readable, name: str) -> Any:
    """A JSON entry. Raises KeyError with a sentence for an artifact that lacks it."""
    if name not in artifact.names:
        raise KeyError(f"the artifact has no {name}: an older graphwright wrote it, compile again.")
    return json.loads(artifact.read(name))


def _mb(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


def _adapters(plan: dict[str, Any]) -> list[str]:
    """Of those that requests may choose: their bytes, and of each where it is from."""
    found = plan.get("adapters")
    if found is None:
        return []
    lines = [f"adapters     {len(found['entries'])}, {_mb(found['bytes'])} of the weights"]
    for each in found["entries"]:
        low, high = each["ranks"]
        ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
        lines.append(
            f"             {each['name']}, of {each['source']}: {ranks}, {each['modules']} "
            f"weights, sha256 {each['sha256']}"
        )
    return lines


def summary(artifact: Readable) -> str:
    """What it is, for which machine, how large, what is inside."""
    manifest, plan = read_json(artifact, "manifest.json"), read_json(artifact, "plan.json")
    options = read_json(artifact, "options.json") if "options.json" in artifact.names else {}
    kv = plan["kv"]
    per_token = kv["block_bytes"] / kv["block_size"]
    context = plan.get("max_context")
    calibrated = options.get("calibration")
    rounded = f", calibrated: {calibrated}" if calibrated else ""
    stages = [name for name in artifact.names if name.startswith("graph/")]
    code = _variants(manifest)
    rolling = f", {len(kv['indexes'])} of index keys" if kv.get("indexes") else ""
    rolling += f", {len(kv['rolling'])} rolling" if kv.get("rolling") else ""
    if kv.get("recurrent"):
        rolling += f"; {_mb(kv['slot_bytes'])} of {len(kv['recurrent'])} recurrent a sequence"
    kinds = "".join(f"{kind}, " for kind in sorted({state["dtype"] for state in kv["states"]}))
    lines = [
        f"format {manifest['format_version']}, made by graphwright "
        f"{manifest['graphwright']} for {manifest['target']}",
        *code,
        f"quant        {options.get('quant', '?')}{_chosen(artifact)}{rounded}",
        *([f"lora         {options['lora']}"] if options.get("lora") else []),
        *_adapters(plan),
        *([f"attention    {options['attention']}"] if options.get("attention") else []),
        f"vocabulary   {plan['vocab_size']}",
        f"max context  {'not stated by the model' if context is None else context}",
        f"weights      {_mb(plan['weights']['bytes'])}, of which one token reads "
        f"{_mb(plan['weights']['bytes_per_token'])}",
        f"kv cache     {kinds}{per_token / 1e3:.1f} kB per token, "
        f"{len(kv['states'])} states{rolling}",
    ]
    lines += [
        f"{name:12} up to {entry['max_tokens']} tokens, arena {_mb(entry['arena_bytes'])}"
        for name, entry in plan["entries"].items()
    ]
    if "tuning.json" in artifact.names:
        tuned = read_json(artifact, "tuning.json")
        changed = sum(row["chosen"] != row["default"] for row in tuned)
        lines.append(f"tuned        {len(tuned)} choices, {changed} changed: inspect --tuning")
    lines.append(f"tokenizer    {'yes' if 'tokenizer.json' in artifact.names else 'no'}")
    lines.append(f"graphs       {len(stages)} stages: inspect --graph NAME")
    return "\n".join(lines)


def _chosen(artifact: Readable) -> str:
    """Where the compiler chose the schemes: what it came to."""
    if "quant.json" not in artifact.names:
        return ""
    choice = read_json(artifact, "quant.json")
    return (
        f", {choice['bits']:.2f} bits a weight, KL divergence {choice['measured']:.3g} nats a "
        "token: inspect --quant"
    )


def _variants(manifest: dict[str, Any]) -> list[str]:
    """Where there are several: which of them this machine would run."""
    variants = read_variants(manifest)
    if len(variants) == 1:
        return []
    best = best_variant(variants, cpu_features())
    here = f"this machine runs {best.name}" if best else "this machine runs none of them"
    return [f"variants     {', '.join(each.name for each in variants)}: {here}"]


def pass_table(artifact: Readable) -> str:
    """One line per pass: rewrites, nodes, how far the numbers moved, what it left alone."""
    rows = read_json(artifact, "log.json")
    lines = [f"{'pass':34} {'rewrites':>8} {'nodes':>13}  checked, with its stage"]
    for row in rows:
        checked = row["verified"]
        text = "-" if checked is None else f"{checked:.1%} of tolerance"
        nodes = f"{row['nodes_before']} -> {row['nodes_after']}"
        lines.append(f"{row['name']:34} {row['rewrites']:8d} {nodes:>13}  {text}")
        lines += [f"    {note}" for note in row.get("notes", ())]
        lines += [f"    left alone: {reason}" for reason in row["misses"]]
    return "\n".join(lines)


def graph_text(artifact: Readable, stage: str) -> str:
    """The graph after the pass `stage`: a name, a number or "last". Raises KeyError naming all."""
    stages = [name[6:-4] for name in artifact.names if name.startswith("graph/")]
    for name in stages:
        number, _, title = name.partition("-")
        if stage in (name, title, number, str(int(number))) or (
            stage == "last" and name == stages[-1]
        ):
            return artifact.read(f"graph/{name}.txt").decode()
    raise KeyError(f"there is no graph '{stage}'; there are: {', '.join(stages)}.")


def memory_table(artifact: Readable, limit: int | None = None) -> str:
    """The arena of each entry, buffer by buffer with a bar for its place, and the other regions.

    At most `limit` buffers of an entry are shown.
    """
    plan = read_json(artifact, "plan.json")
    lines = []
    for name, entry in plan["entries"].items():
        total = max(1, entry["arena_bytes"])
        lines.append(
            f"{name}: up to {entry['max_tokens']} tokens, arena {_mb(entry['arena_bytes'])}"
        )
        lines.append(f"  {'buffer':30} {'offset':>12} {'bytes':>12} {'live':>11}")
        for buffer in entry["buffers"][:limit]:
            start = int(40 * buffer["offset"] / total)
            width = max(1, round(40 * buffer["bytes"] / total))
            bar = (" " * start + "█" * width)[:40]
            live = f"{buffer['first']}-{buffer['last']}"
            shown = buffer["name"].replace("_default", "")
            lines.append(
                f"  {shown:30} {buffer['offset']:12d} {buffer['bytes']:12d} {live:>11} |{bar:40}|"
            )
        left = len(entry["buffers"]) - len(entry["buffers"][:limit])
        if left:
            lines.append(f"  … and {left} more: --all")
    kv = plan["kv"]
    lines.append(
        f"kv cache: blocks of {kv['block_size']} positions, {kv['block_bytes']} bytes each"
    )
    pools = kv.get("pools", [])
    if pools:
        lines[-1] = f"kv cache: blocks of {kv['block_size']} positions in {len(pools)} pools"
    lines += [
        f"  pool {number}   {pool['block_bytes']} bytes each, {_pool_reach(pool.get('reach'))}"
        for number, pool in enumerate(pools)
    ]
    for state in kv["states"]:
        first = f"the first {state['first']} and " if state.get("first") else ""
        span = f"{first}the last {state['span']} positions" if state["span"] else "all positions"
        lines.append(
            f"  {state['name']:8} {state['heads']} heads, {state['head_dim']}+{state['value_dim']} "
            f"{state['dtype']}, {state['mask']}: {span} can be read again{_in_pool(state)}"
        )
    lines += [
        f"  {state['name']:8} {state['heads']} heads, {state['head_dim']} {state['dtype']}: "
        f"index keys, by which others are chosen{_in_pool(state)}"
        for state in kv.get("indexes", ())
    ]
    lines += [
        f"  {state['name']:8} the last {state['kept']} inputs of {state['channels']} channels, "
        f"{state['dtype']}"
        for state in kv.get("rolling", ())
    ]
    if "recurrent" in kv:
        lines.append(f"recurrent states: {kv['slot_bytes']} bytes a sequence")
    lines += [
        f"  {state['name']:8} {state['size']} numbers, float32, {4 * state['size']} bytes"
        for state in kv.get("recurrent", ())
    ]
    gpu = str(read_json(artifact, "manifest.json")["target"]).startswith("cuda")
    where = "copied to the GPU" if gpu else "mapped from the file"
    lines.append(f"weights: {plan['weights']['bytes']} bytes, {where}")
    return "\n".join(lines)


def _in_pool(state: dict[str, Any]) -> str:
    return f", in pool {state['pool']}" if "pool" in state else ""


def _pool_reach(reach: dict[str, int] | None) -> str:
    if reach is None:
        return "all of a sequence are kept"
    first = f"the first {reach['first']} and " if reach["first"] else ""
    return f"of a sequence all but {first}the last {reach['span']} positions are given back"


def ledger_table(artifact: Readable) -> str:
    """Who lowered each node."""
    rows = read_json(artifact, "ledger.json")
    return "\n".join(
        f"{row['entry']:8} {row['step']:30} {row['op']:24} {row['lowering']:26} "
        + " ".join(row["kernels"])
        + (f"   refused: {'; '.join(row['refusals'])}" if row["refusals"] else "")
        for row in rows
    )
