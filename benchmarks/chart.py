"""The chart of a run: decode speed of every runtime, a panel per shape."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from results import Results

__all__ = ["draw"]

OURS, PEER, SPREAD = "#1f6f8b", "#b8b8b8", "#444444"


def draw(results: Results, path: Path) -> None:
    """Bars at the median, whiskers from the slowest to the fastest round."""
    matplotlib.rcParams.update({"svg.hashsalt": "graphwright", "svg.fonttype": "none",
                                "font.size": 8})  # fmt: skip
    shapes = list(dict.fromkeys(m["shape"] for m, _ in results.measurements("decode")))
    if not shapes:
        return
    heights = [len(results.rows("decode", shape)) + 1 for shape in shapes]
    figure, axes = pyplot.subplots(
        len(shapes), 1, figsize=(7, 0.2 * sum(heights) + 0.6 * len(shapes)), squeeze=False,
        height_ratios=heights, layout="constrained",
    )  # fmt: skip
    for shape, axis in zip(shapes, axes[:, 0], strict=True):
        rows = sorted(results.rows("decode", shape), key=lambda r: (-r.bits, r.median))
        axis.barh(
            [row.title for row in rows], [row.median for row in rows],
            color=[OURS if row.ours else PEER for row in rows],
            xerr=[[row.median - min(row.values) for row in rows],
                  [row.best - row.median for row in rows]],
            error_kw={"ecolor": SPREAD, "elinewidth": 0.8},
        )  # fmt: skip
        axis.set_title(f"{shape}: decoded tokens per second", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.02)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
