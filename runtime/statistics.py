"""Figures of a run: tokens and seconds by phase, and the memory of the process."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from graphwright.runtime.steps import Step

__all__ = ["Statistics", "peak_rss_mb", "process_seconds"]


@dataclass
class Statistics:
    """A step that holds any prompt token counts as prefill, every other as decoding, end to end:
    from the end of the step in front, where it was started before that.

    turns: a sequence that a decoding step moves on, counted each time. drafts, drafted_tokens:
    guesses that were computed, and their tokens. accepted_tokens: those of them that saved a step.
    draft_seconds: of decode_seconds, what guessing took.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    turns: int = 0
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    draft_seconds: float = 0.0

    def count(self, step: Step, seconds: float) -> None:
        """Adds one step."""
        tokens = sum(chunk.count for chunk in step.chunks) + self._count_drafts(step)
        if any(chunk.is_prefill for chunk in step.chunks):
            self.prefill_tokens += tokens
            self.prefill_seconds += seconds
        else:
            self.decode_tokens += tokens
            self.decode_seconds += seconds
            self.turns += len(step.chunks)

    def _count_drafts(self, step: Step) -> int:
        """What is to be added to a step's tokens, as it computed some that were not right."""
        drafted = [chunk for chunk in step.chunks if chunk.draft]
        tokens = sum(len(chunk.draft) for chunk in drafted)
        accepted = sum(chunk.accepted for chunk in drafted)
        self.drafts += len(drafted)
        self.drafted_tokens += tokens
        self.accepted_tokens += accepted
        return accepted - tokens

    def speculation(self) -> dict[str, float]:
        """What came of guesses. tokens_per_step: that a sequence gains in a decoding step.
        draft_share: of the time of decoding, what guessing took.
        """
        seconds = self.decode_seconds
        return {
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "tokens_per_step": round(self.decode_tokens / self.turns if self.turns else 1.0, 3),
            "draft_share": round(self.draft_seconds / seconds if seconds else 0.0, 3),
        }

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
