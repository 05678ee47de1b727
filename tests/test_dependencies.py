"""What compiling needs depends on what for: a machine with a GPU has no tvm."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import click
import pytest

from graphwright.commands import dependencies


@pytest.mark.parametrize(
    ("absent", "target", "message"),
    [
        ("tvm", "cuda:sm_90", None),
        ("triton", "host", None),
        ("tvm", "host", r"needs tvm, .*pip install 'graphwright\[compile\]'"),
        ("triton", "cuda", r"needs triton, .*pip install 'graphwright\[compile,triton\]'"),
    ],
)
def test_what_is_missing_is_what_the_target_needs(
    absent: str, target: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name == absent else ModuleSpec(name, None)

    monkeypatch.setattr(dependencies, "find_spec", find)
    if message is None:
        dependencies.require_compiler(target)
        return
    with pytest.raises(click.ClickException, match=message):
        dependencies.require_compiler(target)
