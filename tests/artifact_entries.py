"""An artifact as a dictionary of its entries: what views read, and easily changed."""

from __future__ import annotations

import json
from typing import Any

from graphwright.inspector.text import Readable

__all__ = ["Entries"]


class Entries(dict[str, bytes]):
    """Entries by name, in the order of the file."""

    @classmethod
    def of(cls, artifact: Readable) -> Entries:
        """A copy of what the views read: everything but weights and code."""
        kept = [name for name in artifact.names if not name.endswith((".bin", ".so", ".cubin"))]
        return cls({name: artifact.read(name) for name in kept})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self)

    def read(self, name: str) -> bytes:
        return self[name]

    def json(self, name: str) -> Any:
        return json.loads(self[name])

    def changed(self, **entries: Any) -> Entries:
        """A copy in which `log=…` is the JSON of log.json, and so on."""
        return Entries(self | {f"{k}.json": json.dumps(v).encode() for k, v in entries.items()})

    def for_gpu(self) -> Entries:
        """A copy with the launches, one kernel's facts and its source, and no predictions."""
        kernel = {"symbol": "f", "warps": 4, "shared": 512, "registers": 40, "stack": 0,
                  "early": True, "scratch_pointers": 2}  # fmt: skip
        launch = ["k", [7, 1, 1], [["arena", 0], ["weights", 64], ["arena", 128]]]
        bucket = {"tokens": 1, "rows": 1, "launches": [launch, launch], "largest": [launch]}
        launches = {"format": 4, "chips": ["sm_90"], "kernels": {"sm_90": {"k": kernel}},
                    "entries": {"decode": [bucket]}}  # fmt: skip
        manifest = self.json("manifest.json")
        manifest["entries"]["gpu/sm_90/k.cubin"] = {"bytes": 99, "sha256": "0"}
        gpu = self.changed(manifest={**manifest, "target": "cuda:sm_90"}, phases={})
        gpu["gpu/launches.json"] = json.dumps(launches).encode()
        gpu["gpu/source/k.py"] = b"def k(): pass"
        return gpu

    def replaced(self, old: str, new: str) -> Entries:
        """A copy with `old` written `new` everywhere, in JSON as JSON has it."""
        quoted = json.dumps(new)[1:-1]
        return Entries({
            name: text.replace(old.encode(), (quoted if name.endswith(".json") else new).encode())
            for name, text in self.items()
        })  # fmt: skip
