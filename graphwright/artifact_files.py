"""What goes into the artifact of a compiled model, in which order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphwright.backends.triton.package import GpuPackage
    from graphwright.backends.tvm.build import BuiltProgram
    from graphwright.compiler import Compiled

__all__ = ["write_artifact"]


def write_artifact(compiled: Compiled, path: Path, on_packed: Callable[[int, int], None]) -> None:
    """Writes every entry of `compiled` to `path` by runtime/artifact.py's writer.

    `on_packed(done, total)` counts the bytes of packed weights. Raises ArtifactError.
    """
    from graphwright.compiler import log_as_json
    from graphwright.program_tuning import describe_tuned
    from graphwright.runtime.artifact import ArtifactWriter

    built, count = compiled.built, len(compiled.variants)
    code: list[BuiltProgram | GpuPackage] = list(compiled.variants)
    variants = [each.variant(count) for each in code]
    total = built.weight_bytes

    def counted() -> Iterator[bytes | memoryview]:
        done = 0
        for chunk in built.weights():
            yield chunk
            done += len(chunk)
            on_packed(done, total)

    slots, pools = built.plan["kv"].get("slot_bytes", 0) > 0, "pools" in built.plan["kv"]
    adapters = "adapters" in built.plan
    with ArtifactWriter(
        path, variants=variants, slots=slots, pools=pools, adapters=adapters
    ) as writer:
        for variant, each in zip(variants, code, strict=True):
            for name, content in each.files(variant):
                writer.add(name, content)
        writer.add_stream("weights.bin", counted(), total)
        for name, text in compiled.graphs:
            writer.add(f"graph/{name}.txt", text)
        writer.add("plan.json", json.dumps(built.plan, indent=1))
        writer.add("log.json", log_as_json(compiled.program))
        writer.add("options.json", json.dumps(vars(compiled.options), indent=1))
        writer.add("versions.json", json.dumps(_versions(), indent=1))
        writer.add("ledger.json", json.dumps([vars(entry) for entry in built.ledger], indent=1))
        writer.add("phases.json", json.dumps(built.facts))
        if compiled.program.choice is not None:
            writer.add("quant.json", json.dumps(compiled.program.choice.as_json(), indent=1))
        if compiled.tuned:
            writer.add("tuning.json", json.dumps(describe_tuned(compiled.tuned), indent=1))
        for name, content in compiled.files.items():
            writer.add(name, content)
        if compiled.golden is not None:
            writer.add("golden.json", json.dumps(compiled.golden))


def _versions() -> dict[str, str]:
    """Versions of what made the artifact."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("graphwright", "torch", "transformers", "apache-tvm", "apache-tvm-ffi", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
