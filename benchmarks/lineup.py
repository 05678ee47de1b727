"""Who is compared with whom: our schemes and the peers' formats, as data.

A new scheme of ours, or another format of a peer, is one line here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models import artifact, peer_model
from peers import ENVIRONMENTS, python_of

__all__ = [
    "CONTEXT_VARIANTS",
    "OURS",
    "PEER_KINDS",
    "Contestant",
    "Ours",
    "PeerKind",
    "among",
    "contestants",
]


@dataclass(frozen=True)
class Ours:
    """One of our artifacts. bits: what it is compared at. options: those of `compile`."""

    name: str
    bits: int
    options: tuple[str, ...]

    @property
    def title(self) -> str:
        """As tables show it."""
        return f"graphwright {self.name}"


def _quant(name: str, bits: int) -> Ours:
    return Ours(name, bits, ("--quant", name))


def _with_kv(name: str, bits: int, dtype: str) -> Ours:
    return Ours(f"{name} kv {dtype}", bits, ("--quant", name, "--kv-cache-dtype", dtype))


OURS = {
    each.name: each
    for each in (
        _quant("w4g32", 4), _quant("w4g64", 4), _quant("w4g128", 4), _quant("w4g32z", 4),
        _quant("w4g128z", 4), _quant("w8", 8), _quant("w8g32", 8), _quant("w8g128", 8),
        _quant("f16", 16), _quant("bf16", 16), _quant("f32", 32),
        _with_kv("w4g32", 4, "f16"), _with_kv("w4g32", 4, "int8"),
        _with_kv("w8", 8, "f16"), _with_kv("w8", 8, "int8"),
    )
}  # fmt: skip
CONTEXT_VARIANTS = ("w4g32 kv f16", "w4g32 kv int8")


@dataclass(frozen=True)
class PeerKind:
    """A format of a peer. group: runtimes of one group are loaded and alternated together."""

    peer: str
    kind: str
    bits: int
    title: str
    worker: str
    arguments: tuple[str, ...] = ()


PEER_KINDS = (
    PeerKind("llama.cpp", "Q4_0", 4, "llama.cpp Q4_0", "llama_cpp_worker.py"),
    PeerKind("llama.cpp", "Q4_K_M", 4, "llama.cpp Q4_K_M", "llama_cpp_worker.py"),
    PeerKind("ort", "int4", 4, "ONNX Runtime int4", "ort_worker.py"),
    PeerKind("openvino", "int4", 4, "OpenVINO int4", "openvino_worker.py"),
    PeerKind("llama.cpp", "Q8_0", 8, "llama.cpp Q8_0", "llama_cpp_worker.py"),
    PeerKind("openvino", "int8", 8, "OpenVINO int8", "openvino_worker.py"),
    PeerKind("ctranslate2", "int8", 8, "CTranslate2 int8", "ctranslate2_worker.py"),
    PeerKind("llama.cpp", "F16", 16, "llama.cpp F16", "llama_cpp_worker.py"),
    PeerKind("transformers", "eager-bf16", 16, "transformers eager bf16",
             "transformers_worker.py", ("eager", "bfloat16")),
    PeerKind("transformers", "compile-bf16", 16, "torch.compile bf16",
             "transformers_worker.py", ("compile", "bfloat16")),
    PeerKind("transformers", "eager-f32", 32, "transformers eager f32",
             "transformers_worker.py", ("eager", "float32")),
    PeerKind("transformers", "compile-f32", 32, "torch.compile f32",
             "transformers_worker.py", ("compile", "float32")),
)  # fmt: skip


@dataclass(frozen=True)
class Contestant:
    """A runtime with a model: what to start, and how it is shown. peer: None for ours."""

    title: str
    peer: str | None
    kind: str
    bits: int
    command: tuple[str, ...]

    @property
    def ours(self) -> bool:
        """Is it graphwright?"""
        return self.peer is None

    @property
    def batches(self) -> bool:
        """Can its worker decode several sequences at once?"""
        return self.ours or self.peer == "llama.cpp"


def contestants(shape: str, quants: list[str], peers: list[str], threads: int) -> list[Contestant]:
    """All that take part, ours first; makes their model files. peers: names of peers or formats."""
    found = [our_contestant(shape, OURS[name], threads) for name in quants]
    for each in PEER_KINDS:
        if each.peer in peers or f"{each.peer}:{each.kind}" in peers:
            python = python_of(each.peer) if each.peer in ENVIRONMENTS else Path(sys.executable)
            model = peer_model(each.peer, shape, each.kind)
            command = (str(python), each.worker, str(model), str(threads), *each.arguments)
            found.append(Contestant(each.title, each.peer, each.kind, each.bits, command))
    return found


def among(kinds: set[str], found: Sequence[Contestant]) -> list[Contestant]:
    """Those of `kinds`; all of ours, or all of the peers, where none of them is."""
    chosen = []
    for ours in (True, False):
        side = [each for each in found if each.ours == ours]
        chosen += [each for each in side if each.kind in kinds] or side
    return chosen


def our_contestant(
    shape: str, ours: Ours, threads: int, *, context: int = 1024, sequences: int = 8
) -> Contestant:
    """One of our artifacts in an engine of `sequences` sequences of `context` tokens."""
    path = artifact(shape, ours.name, ours.options)
    command = (sys.executable, "graphwright_worker.py", str(path), str(threads), str(context),
               str(sequences))  # fmt: skip
    return Contestant(ours.title, None, ours.name, ours.bits, command)
