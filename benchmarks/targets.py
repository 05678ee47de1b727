"""What a run must show: every target with what was measured, and whether it is met.

A ratio is the median over rounds of the ratio of neighbours; the ratios of medians and of bests
stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from results import Results, Row, ratio

__all__ = ["Target", "targets"]

LARGE, MIDDLE, SMALL = "tinyllama-1.1b", "smollm2-135m", "stories15m"
ALLOWED = 0.85  # of what the probe allows, where that is less than the ratio asked for


@dataclass(frozen=True)
class Target:
    """One line: what, the limit in words, what was measured in words, and the verdict."""

    what: str
    limit: str
    measured: str
    met: bool


def targets(results: Results) -> list[Target]:
    """All targets that the run measured; others are left out."""
    found = [
        *_decode(results), *_floats(results), *_shares(results), *_small(results),
        *_prefill(results), *_batch(results), *_context(results), *_first_token(results),
        *_compile(results), *_contention(results), *_outside(results),
    ]  # fmt: skip
    return found


def _versus(what: str, ours: Row | None, peer: Row | None, least: float) -> Iterator[Target]:
    if ours is not None and peer is not None:
        found = ratio(ours, peer)
        yield Target(what, f"≥ {least:g} ×", _ratio_text(ours, peer), found.pairwise >= least)


def _ratio_text(ours: Row, peer: Row) -> str:
    found = ratio(ours, peer)
    return (
        f"**{found.pairwise:.2f} ×** ({ours.title.removeprefix('graphwright ')} : {peer.title}; "
        f"medians {found.medians:.2f}, bests {found.bests:.2f})"
    )


def _decode(results: Results) -> Iterator[Target]:
    """1.6 × the best peer of the same bits, or ALLOWED of the probe where that is less."""
    for bits, ours_named, what in (
        (4, ("w4g32", "w4g128"), "best 4-bit scheme : best 4-bit peer"),
        (8, ("w8",), "`w8` : best 8-bit peer"),
    ):
        names = {f"graphwright {name}" for name in ours_named}
        ours = results.best("decode", LARGE, lambda row, names=names: row.title in names)
        peer = results.best("decode", LARGE, lambda row, b=bits: row.bits == b and not row.ours)
        if ours is not None and peer is not None:
            share = ours.share or 0.0
            met = ratio(ours, peer).pairwise >= 1.6 or share >= ALLOWED
            text = f"{_ratio_text(ours, peer)}, {share:.2f} of the probe"
            limit = f"≥ 1.6 × or ≥ {ALLOWED} of the probe"
            yield Target(f"decode, 1.1B, {what}", limit, text, met)


def _floats(results: Results) -> Iterator[Target]:
    peer = results.best("decode", LARGE, lambda row: row.title == "llama.cpp F16")
    for name in ("f16", "bf16"):
        ours = results.best("decode", LARGE, lambda row, n=name: row.title == f"graphwright {n}")
        yield from _versus(f"decode, 1.1B, `{name}` : llama.cpp F16", ours, peer, 1.0)


def _shares(results: Results) -> Iterator[Target]:
    for name in ("w8", "w4g128"):
        ours = results.best("decode", LARGE, lambda row, n=name: row.title == f"graphwright {n}")
        if ours is not None and ours.share is not None:
            what = f"decode, 1.1B, `{name}`: share of the read probe"
            yield Target(what, "≥ 0.8 (aim 0.9)", f"**{ours.share:.2f}**", ours.share >= 0.8)


def _small(results: Results) -> Iterator[Target]:
    for shape, bits, least in ((MIDDLE, 4, 1.5), (MIDDLE, 8, 1.5), (SMALL, 8, 2.0)):
        ours = results.best("decode", shape, lambda row, b=bits: row.bits == b and row.ours)
        peer = results.best("decode", shape, lambda row, b=bits: row.bits == b and not row.ours)
        yield from _versus(f"decode, {shape}, {bits} bits : best peer", ours, peer, least)


def _prefill(results: Results) -> Iterator[Target]:
    def found(wanted: str | None) -> Row | None:
        return results.best(
            "prefill", LARGE,
            lambda row: not row.ours and row.bits <= 8 and (wanted is None or wanted in row.title),
            prompt=512,
        )  # fmt: skip

    ours = results.best("prefill", LARGE, lambda row: row.ours and row.bits <= 8, prompt=512)
    yield from _versus("prefill 512, 1.1B, best ≤ 8 bits : llama.cpp's best", ours,
                       found("llama.cpp"), 2.0)  # fmt: skip
    yield from _versus("prefill 512, 1.1B, best ≤ 8 bits : best peer", ours, found(None), 1.25)


def _batch(results: Results) -> Iterator[Target]:
    rows = {row.title: row for row in results.rows("batch", LARGE) if row.bits <= 8}
    singles = {row.facts["single"]: row for row in rows.values() if "single" in row.facts}
    ours = max((rows[title] for title in singles), key=lambda row: row.median, default=None)
    peers = [row for row in rows.values() if not row.ours]
    peer = max(peers, key=lambda row: row.median, default=None)
    if ours is not None:
        yield from _versus(
            "8 sequences, 1.1B : our single sequence", ours, singles[ours.title], 3.0
        )
    yield from _versus("8 sequences, 1.1B : llama.cpp's best batch", ours, peer, 2.5)


def _context(results: Results) -> Iterator[Target]:
    """Time a token over (time at the short position + more bytes of keys and values / probe)."""
    rows = results.rows("context", LARGE)
    for far in rows:
        near = [r for r in rows if r.facts["of"] == far.facts["of"]
                and r.facts["position"] < far.facts["position"]]  # fmt: skip
        if near:
            quotients = sorted(
                (1 / slow) / (1 / fast + far.facts["kv_bytes"] / 1e9 / probe)
                for slow, fast, probe in zip(far.values, near[0].values, far.probes, strict=True)
            )
            middle = quotients[len(quotients) // 2]
            what = f"decode at {far.facts['position']} tokens, {far.facts['of']}: time over model"
            yield Target(what, "≤ 1.15", f"**{middle:.2f}**", middle <= 1.15)


def _first_token(results: Results) -> Iterator[Target]:
    rows = results.rows("first-token", LARGE)
    for bits in sorted({row.bits for row in rows}):
        ours = min(
            (r for r in rows if r.ours and r.bits == bits), key=lambda r: r.median, default=None
        )
        peer = min((r for r in rows if not r.ours and r.bits == bits), key=lambda r: r.median,
                   default=None)  # fmt: skip
        if ours is not None and peer is not None:
            what = f"process start to first token, 1.1B, {bits} bits : llama.cpp"
            text = f"{_ratio_text(ours, peer)}, {ours.median:.2f} s"
            yield Target(what, "≤ 0.5 ×", text, ratio(ours, peer).pairwise <= 0.5)


def _compile(results: Results) -> Iterator[Target]:
    cost = results.raw["compile"]
    if cost:
        text = f"**{cost['seconds']:.0f} s, {cost['peak_private_mb'] / 1e3:.2f} GB**"
        what = f"compile of the 1.1B bf16 checkpoint to `{cost['quant']}`"
        met = cost["seconds"] <= 60 and cost["peak_private_mb"] <= 2500
        yield Target(what, "≤ 60 s, ≤ 2.5 GB", text, met)


def _contention(results: Results) -> Iterator[Target]:
    rows = {row.title: row for row in results.rows("contention", LARGE)}
    for row in rows.values():
        if row.ours and row.facts.get("disturbed"):
            alone = rows[f"{row.facts['of']}, undisturbed"]
            name = row.facts["of"].removeprefix("graphwright ")
            what = f"decode, 1.1B, `{name}`, beside a busy process : undisturbed"
            yield from _versus(what, row, alone, 0.45)


def _outside(results: Results) -> Iterator[Target]:
    found = results.raw.get("profile")
    if found:
        text = f"**{found['outside']:.1%}** of {found['step_ms']:.1f} ms"
        what = f"decode step, 1.1B, `{found['name']}`: outside of kernels"
        yield Target(what, "< 3 %", text, found["outside"] < 0.03)
