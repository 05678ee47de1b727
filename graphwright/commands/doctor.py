"""`graphwright doctor`: what is there, what is missing, and what that means."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import click

__all__ = ["command"]

_PURPOSES = {
    "run": ("numpy", "tokenizers", "click"),
    "compile": ("torch", "transformers", "safetensors", "apache-tvm", "networkx", "rich"),
    "serve": ("starlette", "uvicorn", "jinja2"),
    "keep to a grammar": ("llguidance",),
}


@dataclass(frozen=True)
class _Finding:
    name: str
    value: str
    good: bool
    needed_for: str


@click.command("doctor", short_help="Say what this machine has and what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Check the environment: exit code 1 when running artifacts would not work here."""
    findings = [*_system(), *_packages(), _linker()]
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = "ok     " if finding.good else "MISSING"
            purpose = f"   (needed to {finding.needed_for})" if finding.needed_for else ""
            click.echo(f"{mark} {finding.name:16} {finding.value}{purpose}")
    if any(not f.good and f.needed_for == "run" for f in findings):
        sys.exit(1)


def _system() -> list[_Finding]:
    from graphwright import __version__
    from graphwright.runtime.cpu import cpu_features

    features = cpu_features()
    shown = [
        name for name in ("avx2", "fma", "avx512f", "avx512_vnni", "amx_int8") if name in features
    ]
    cpu_good = {"avx2", "fma"} <= features
    threads = len(os.sched_getaffinity(0))
    return [
        _Finding("graphwright", __version__, True, ""),
        _Finding("python", platform.python_version(), sys.version_info >= (3, 11), "run"),
        _Finding("system", f"{platform.system()} {platform.machine()}",
                 platform.system() == "Linux", "run"),
        _Finding("cpu", f"{threads} threads, {' '.join(shown) or 'no AVX2'}", cpu_good, "run"),
    ]  # fmt: skip


def _packages() -> list[_Finding]:
    findings = []
    for purpose, names in _PURPOSES.items():
        for name in names:
            try:
                findings.append(_Finding(name, version(name), True, purpose))
            except PackageNotFoundError:
                findings.append(_Finding(name, "not installed", False, purpose))
    return findings


def _linker() -> _Finding:
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None and find_spec("ziglang") is not None:
        found = "ziglang package"
    hint = "none; install gcc or clang, or: pip install 'graphwright[linker]'"
    return _Finding("c linker", found or hint, found is not None, "compile")
