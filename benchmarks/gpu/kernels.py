"""Where a step's time goes on the GPU: its launches, kernel by kernel, each group as a graph.

The launches of one kernel in all layers are captured together and replayed, so that weights come
from memory and the host takes no part; they run on whatever the last step left in memory. Where it
was started before its tokens were known, each replay takes what the one in front has chosen.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from graphwright.runtime.cuda.library import CudaLibrary
from graphwright.runtime.cuda.program import Bucket, Launch

__all__ = ["graph_seconds", "kernel_table"]


def graph_seconds(library: CudaLibrary, launches: Sequence[Launch], repeats: int = 10) -> float:
    """The median of a replay of these launches."""
    driver = library.driver
    library.launch(launches)
    driver.wait()
    driver.capture()
    library.launch(launches)
    graph = driver.captured()
    driver.replay(graph)
    driver.wait()
    return statistics.median(driver.seconds(lambda: driver.replay(graph)) for _ in range(repeats))


def kernel_table(library: CudaLibrary, bucket: Bucket) -> list[dict[str, object]]:
    """kernel, launches a step, and µs of one, of a step after such a step has run."""
    groups: dict[str, list[Launch]] = {}
    for launch in bucket.launches:
        groups.setdefault(launch.kernel, []).append(launch)
    rows = [
        {
            "kernel": name, "launches": len(launches), "grid": list(launches[0].grid),
            "us": 1e6 * graph_seconds(library, launches, 5) / len(launches),
        }
        for name, launches in groups.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -float(str(row["us"])) * int(str(row["launches"])))
