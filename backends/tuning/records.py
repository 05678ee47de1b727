"""What was measured before on a machine like this one, in a file for each kind of machine."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphwright.backends.tuning.choices import Choice
from graphwright.backends.tuning.compare import Finding

__all__ = ["Records"]

FORMAT = 1


class Records:
    """Findings by choice, kept in `folder`.

    machine: all that figures depend on beside the choice: the processor, its features, threads, the
    version of this project. A file that cannot be read or written is as good as none.
    """

    def __init__(self, folder: Path, machine: str) -> None:
        self._machine = machine
        self._path = folder / f"{hashlib.sha256(machine.encode()).hexdigest()[:24]}.json"

    def find(self, choice: Choice) -> Finding | None:
        """What was found for the very same choice, candidates included."""
        found = self._read().get(_key(choice))
        try:
            finding = None if found is None else Finding(**found)
        except TypeError:
            return None
        return finding if finding is not None and finding.chosen in choice.candidates else None

    def keep(self, choice: Choice, finding: Finding) -> None:
        """Adds or replaces one, beside what other processes kept meanwhile."""
        content = {
            "format": FORMAT,
            "machine": self._machine,
            "records": {**self._read(), _key(choice): asdict(finding)},
        }
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(content, indent=1))
            temporary.replace(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text())
            if content["format"] != FORMAT or content["machine"] != self._machine:
                return {}
            return dict(content["records"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _key(choice: Choice) -> str:
    return f"{choice.key}: {' | '.join(choice.candidates)}"
