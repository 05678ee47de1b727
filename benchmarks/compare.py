"""Did anything get slower? The ratios of a new run against those of the last recorded one.

    python benchmarks/compare.py [NEW.json [OLD.json]]     # latest.json, the newest DATE.json

What is compared are ratios of ours to each peer (of the same bits; prefill and batches: to all),
not speeds: another machine, or another hour, has other speeds. A ratio that fell by more than the
noise of both runs regressed. Exit code 1 when something did.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from results import Results, Row, ratio

__all__ = ["compare"]

LEAST = 0.08  # a smaller change is never called one
HERE = Path(__file__).resolve().parent / "results"


def ratios(results: Results) -> dict[str, tuple[float, float]]:
    """What was compared with what: (ratio, its noise as a share of it)."""
    found: dict[str, tuple[float, float]] = {}
    for scenario in ("decode", "prefill", "batch"):
        for each, rows in results.measurements(scenario):
            prompt = each["parameters"]["prompt"]
            for ours, peer in _pairs(rows, scenario):
                r = ratio(ours, peer)
                noise = r.spread / len(ours.values) ** 0.5
                name = f"{each['shape']} {scenario} {prompt}: {ours.title} : {peer.title}"
                found[name] = (r.pairwise, noise)
    for each, rows in results.measurements("first-token"):
        for ours, peer in _pairs(rows, "decode"):
            r = ratio(peer, ours)  # seconds: turned round, so that more is better here too
            noise = r.spread / len(ours.values) ** 0.5
            found[f"{each['shape']} first token: {peer.title} : {ours.title}"] = (r.pairwise, noise)
    return found


def _pairs(rows: list[Row], scenario: str) -> Iterator[tuple[Row, Row]]:
    for ours in (row for row in rows if row.ours and "single" not in row.facts):
        for peer in (row for row in rows if not row.ours):
            if scenario != "decode" or peer.bits == ours.bits:
                yield ours, peer


def compare(new: Results, old: Results) -> tuple[list[str], bool]:
    """(one line per ratio that both runs have, did any regress)."""
    now, before = ratios(new), ratios(old)
    lines, regressed = [], False
    for name in now.keys() & before.keys():
        (value, noise), (last, last_noise) = now[name], before[name]
        change = value / last - 1
        margin = max(LEAST, 2 * (noise**2 + last_noise**2) ** 0.5)
        word = "REGRESSED" if change < -margin else "better" if change > margin else "same"
        regressed |= word == "REGRESSED"
        lines.append(
            f"{word:9} {name}: {last:.2f} -> {value:.2f} ({change:+.0%}, noise {margin:.0%})"
        )
    return sorted(lines), regressed


def main() -> None:
    """Prints the comparison."""
    given = [Path(each) for each in sys.argv[1:]]
    new = given[0] if given else HERE / "latest.json"
    dated = sorted(path for path in HERE.glob("20*.json") if path.resolve() != new.resolve())
    if len(given) < 2 and not dated:
        raise SystemExit("no run is recorded yet: `make bench` records one.")
    lines, regressed = compare(Results(new), Results(given[1] if len(given) > 1 else dated[-1]))
    if not lines:
        raise SystemExit("the two runs have no comparison in common.")
    print("\n".join(lines))
    raise SystemExit(1 if regressed else 0)


if __name__ == "__main__":
    main()
