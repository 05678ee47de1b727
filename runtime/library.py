"""The step library: compiled code behind a small protocol, loaded without tvm or torch."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.errors import ArtifactError
from graphwright.runtime.memory import ALIGNMENT, is_aligned
from graphwright.runtime.thread_pool import ThreadPool

__all__ = ["NativeLibrary", "StepBuffers", "StepLibrary"]

_LIBRARIES: list[ctypes.CDLL] = []  # a loaded TVM runtime stays for the whole process


@dataclass(frozen=True)
class StepBuffers:
    """Everything a step reads and writes, allocated once, in the order of an entry's arguments.

    batch int32 [8]: T tokens, B sequences, M block-table entries a sequence, R sampled rows, zeros.
    tokens, positions int64 [>= T]; query_start int32 [>= B + 1]; block_table int32 [>= B * M];
    sample_rows int32 [>= R]; logits float32 [>= R, V]; arena, weights, kv: bytes.
    """

    batch: NDArray[np.int32]
    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    query_start: NDArray[np.int32]
    block_table: NDArray[np.int32]
    sample_rows: NDArray[np.int32]
    logits: NDArray[np.float32]
    arena: NDArray[np.uint8]
    weights: NDArray[np.uint8]
    kv: NDArray[np.uint8]

    def arrays(self) -> list[NDArray[Any]]:
        """The buffers in argument order."""
        return [getattr(self, each.name) for each in fields(self)]


class StepLibrary(Protocol):
    """What the engine needs from compiled code. `entry` is "decode" or "prefill"."""

    def run(self, entry: str, buffers: StepBuffers) -> None:
        """One step over the batch described in `buffers`."""


class NativeLibrary:
    """The step library of an artifact. `threads` is how many take part in a step."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        import tempfile

        ffi = _import_tvm_ffi()
        with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
            _load_runtime(ffi, artifact, Path(folder))
            path = _extract(artifact, artifact.variant().library, Path(folder))
            try:
                module = ffi.load_module(str(path))
            except (OSError, RuntimeError) as error:
                raise ArtifactError(
                    f"the step library of {artifact.path} does not load: {error}."
                ) from error
        try:
            self._entries: dict[str, Callable[..., int]] = {
                name: module.get_function(name) for name in ("decode", "prefill")
            }
        except (AttributeError, RuntimeError) as error:
            raise ArtifactError(
                f"the step library of {artifact.path} lacks an entry: {error}."
            ) from error
        self._threads = threads
        self._pool = ThreadPool(ffi, threads)
        self._buffers: StepBuffers | None = None
        self._arguments: tuple[Any, ...] = ()

    def run(self, entry: str, buffers: StepBuffers) -> None:
        """One native call. Raises RuntimeError when the code reports a failure."""
        self._pool.configure()
        if buffers is not self._buffers:
            self._bind(buffers)
        status = self._entries[entry](*self._arguments)
        if status:
            raise RuntimeError(f"the compiled step '{entry}' failed with status {status}.")

    def _bind(self, buffers: StepBuffers) -> None:
        arrays = buffers.arrays()
        for name, array in zip((each.name for each in fields(buffers)), arrays, strict=True):
            # Compiled vector loads trust this; a wrong address would end the process.
            assert is_aligned(array), f"'{name}' is not aligned to {ALIGNMENT} bytes"
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        self._arguments = (*pointers, self._threads)
        self._buffers = buffers


def _import_tvm_ffi() -> Any:
    """tvm_ffi, kept from importing torch, as it does wherever torch is installed."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm_ffi
    finally:
        if hide:
            del sys.modules["torch"]
    return tvm_ffi


def _load_runtime(ffi: Any, artifact: Artifact, folder: Path) -> None:
    """Loads libtvm_runtime once a process: two copies would both register the same functions.

    Where apache-tvm of the same build is installed its file is taken, so that importing tvm later
    finds it loaded.
    """
    if ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is not None:
        return
    name = "lib/libtvm_runtime.so"
    path = _installed_runtime(artifact, name) or _extract(artifact, name, folder)
    try:
        _LIBRARIES.append(ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL))
    except OSError as error:
        raise ArtifactError(
            f"the TVM runtime inside {artifact.path} does not load: {error}. It was written for "
            f"apache-tvm-ffi {getattr(ffi, '__version__', '')} or a near version."
        ) from error


def _installed_runtime(artifact: Artifact, name: str) -> Path | None:
    spec = find_spec("tvm")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "lib" / Path(name).name
        if path.is_file() and path.stat().st_size == len(artifact.view(name)):
            expected = artifact.manifest.entries[name]["sha256"]
            if hashlib.sha256(path.read_bytes()).hexdigest() == expected:
                return path
    return None


def _extract(artifact: Artifact, name: str, folder: Path) -> Path:
    path = folder / Path(name).name
    try:
        path.write_bytes(artifact.view(name))
    except OSError as error:
        raise ArtifactError(
            f"cannot unpack '{name}' of {artifact.path} to {folder}: {error.strerror}. "
            "Set TMPDIR to a folder with room for it."
        ) from error
    return path
