"""Figures of a run: tokens and seconds by phase, and the memory of the process."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from graphwright.runtime.scheduler import Step

__all__ = ["Statistics", "peak_rss_mb", "process_seconds"]


@dataclass
class Statistics:
    """A step that holds any prompt token counts as prefill, every other as decoding, end to end:
    from the end of the step in front, where it was started before that.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def count(self, step: Step, seconds: float) -> None:
        """Adds one step."""
        tokens = sum(chunk.count for chunk in step.chunks)
        if any(chunk.is_prefill for chunk in step.chunks):
            self.prefill_tokens += tokens
            self.prefill_seconds += seconds
        else:
            self.decode_tokens += tokens
            self.decode_seconds += seconds

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens a second; 0 when there were none."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tps(self) -> float:
        """Generated tokens a second after the first of each sequence; 0 when there were none."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


def peak_rss_mb() -> float:
    """The most memory this process had resident, mapped files included, in 10^6 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def process_seconds() -> float:
    """Seconds since this process was started by the system."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
