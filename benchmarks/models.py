"""The model files of a benchmark, made on demand from one random checkpoint per shape.

    python benchmarks/models.py tinyllama-1.1b          # everything for all peers

They lie in benchmarks/models/, or under GRAPHWRIGHT_BENCH_MODELS. Files that exist are kept, but
for our own artifacts, which are compiled again when the sources of the compiler are others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from peers import python_of

__all__ = ["MODELS", "artifact", "checkpoint", "compile_ahead", "peer_model"]

HERE = Path(__file__).resolve().parent
MODELS = Path(os.environ.get("GRAPHWRIGHT_BENCH_MODELS", HERE / "models"))
COMPILER = ("frontend", "ir", "passes", "backends", "graphwright", "runtime")
ASIDE = ("backends/triton", "graphwright/commands", "runtime/cuda")  # code that no artifact is of
GROUP = {"tinyllama-1.1b": 128, "smollm2-135m": 64, "stories15m": 32}  # divides the hidden size


def checkpoint(shape: str) -> Path:
    """The random bf16 checkpoint, without a tokenizer."""
    folder = MODELS / shape
    if not (folder / "config.json").is_file():
        _run(sys.executable, HERE / "make_checkpoint.py", shape, folder)
    return folder


def artifact(shape: str, name: str, options: tuple[str, ...]) -> Path:
    """Our artifact `name` of the shape, compiled with `options`.

    Unchecked: four bits move the logits of random weights further than those of trained ones, and
    what is computed is the tests' matter.
    """
    path = MODELS / f"{shape}-{name.replace(' ', '-').replace(':', '_')}.gw"
    stamp = path.with_suffix(".sources")
    if not path.is_file() or not stamp.is_file() or stamp.read_text() != _sources():
        stamp.unlink(missing_ok=True)
        command = [sys.executable, "-m", "graphwright", "compile", checkpoint(shape)]
        command += ["--quiet", "--no-check"]
        _run(*command, *options, "-o", path)
        stamp.write_text(_sources())
    return path


def compile_ahead(wanted: Sequence[tuple[str, str, tuple[str, ...]]], jobs: int) -> None:
    """Makes the artifacts of these shapes, names and options, `jobs` at a time."""
    for shape in {shape for shape, _, _ in wanted}:
        checkpoint(shape)
    with ThreadPoolExecutor(jobs) as pool:
        for job in [pool.submit(artifact, *each) for each in wanted]:
            job.result()


@cache
def _sources() -> str:
    """A digest of everything that artifacts follow from."""
    root, digest = HERE.parent, hashlib.sha256()
    for room in COMPILER:
        for file in sorted((root / room).rglob("*")):
            name = file.relative_to(root).as_posix()
            if file.suffix in (".py", ".c") and not name.startswith(ASIDE):
                digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def peer_model(peer: str, shape: str, kind: str) -> Path:
    """The file or folder that the worker of `peer` loads."""
    return _MAKERS[peer](shape, kind)


def _with_tokenizer(shape: str) -> Path:
    """The checkpoint as the converters want it: beside a tokenizer, one that nobody reads."""
    folder, source = MODELS / f"{shape}-hf", checkpoint(shape)
    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(exist_ok=True)
        for file in source.iterdir():
            (folder / file.name).unlink(missing_ok=True)
            (folder / file.name).symlink_to(file.resolve())
        _run(sys.executable, HERE / "make_tokenizer.py", shape, folder)
    return folder


def _llama_cpp(shape: str, kind: str) -> Path:
    path = MODELS / f"{shape}-{kind}.gguf"
    if not path.is_file():
        _run(python_of("llama.cpp"), HERE / "make_gguf.py", shape, MODELS, kind)
    return path


def _ort(shape: str, kind: str) -> Path:
    def convert(folder: Path) -> None:
        options = ("int4_accuracy_level=4", "int4_block_size=32")
        _run(python_of("ort"), "-m", "onnxruntime_genai.models.builder", "-i",
             _with_tokenizer(shape), "-o", folder, "-p", kind, "-e", "cpu",
             "-c", folder / "cache", "--extra_options", *options)  # fmt: skip

    return _made(MODELS / f"{shape}-ort-{kind}", convert)


def _openvino(shape: str, kind: str) -> Path:
    def convert(folder: Path) -> None:
        _run(python_of("openvino"), HERE / "make_openvino.py", _with_tokenizer(shape), folder,
             kind, GROUP[shape])  # fmt: skip

    return _made(MODELS / f"{shape}-openvino-{kind}", convert)


def _ctranslate2(shape: str, kind: str) -> Path:
    def convert(folder: Path) -> None:
        converter = python_of("ctranslate2").with_name("ct2-transformers-converter")
        _run(converter, "--model", _with_tokenizer(shape), "--output_dir", folder,
             "--quantization", kind, "--force")  # fmt: skip

    return _made(MODELS / f"{shape}-ctranslate2-{kind}", convert)


_MAKERS: dict[str, Callable[[str, str], Path]] = {
    "llama.cpp": _llama_cpp,
    "ort": _ort,
    "openvino": _openvino,
    "ctranslate2": _ctranslate2,
    "transformers": lambda shape, kind: checkpoint(shape),
}


def _made(folder: Path, convert: Callable[[Path], None]) -> Path:
    """`folder`, whole: a conversion that fails leaves nothing that looks finished."""
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        convert(partial)
        shutil.rmtree(partial / "cache", ignore_errors=True)
        partial.rename(folder)
    return folder


def _run(*command: object) -> None:
    print("making:", *command, file=sys.stderr)
    subprocess.run([str(each) for each in command], check=True, stdout=sys.stderr, cwd=HERE)


if __name__ == "__main__":
    from lineup import PEER_KINDS

    MODELS.mkdir(parents=True, exist_ok=True)
    for shape in sys.argv[1:]:
        for each in PEER_KINDS:
            print(peer_model(each.peer, shape, each.kind))
