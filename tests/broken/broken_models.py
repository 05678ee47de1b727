"""All broken decoders and their near misses, by name."""

from __future__ import annotations

import near_misses  # noqa: F401
import sins_in_attention  # noqa: F401
import sins_in_choices  # noqa: F401
import sins_of_recurrence  # noqa: F401
import sins_over_the_step  # noqa: F401
import sins_over_tokens  # noqa: F401
from broken_decoder import BROKEN, CONTEXT, SOUND, VOCAB, build

__all__ = ["BROKEN", "CONTEXT", "SOUND", "VOCAB", "build"]
